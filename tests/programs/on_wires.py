"""Run a body on real wires: python on_wires.py reduce|train STRATEGY [ORACLE]. Exits with 0 if all is well."""

import sys

import torch
from bodies import reduce_distinct, train

from bigbatch.comm.agreement import share
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.launch import detect
from bigbatch.comm.strategies import STRATEGIES

body, name, *oracle = sys.argv[1:]
torch.set_num_threads(1)
strategy = STRATEGIES.load(name)
transport = strategy.connect(detect(), "cpu", deadline=60)
try:
    if body == "reduce":
        for dtype in ("float32", "float64", "int64"):
            results = share(transport, {n: data.hex() for n, data in reduce_distinct(transport, ring, dtype).items()})
            assert all(result == results[0] for result in results)
    else:
        expected, validation = torch.load(oracle[0])
        for accumulation, bucket_bytes in ((1, 25 * 2**20), (2, 1000), (4, 2000)):
            result = train(transport, strategy, accumulation, bucket_bytes)
            if result is not None:
                torch.testing.assert_close(result[0], expected, rtol=1e-12, atol=1e-14)
                assert abs(result[1] - validation) < 1e-12
            transport.barrier()
    transport.barrier()
except BaseException:
    import traceback

    traceback.print_exc()
    transport.abort(1)
if transport.rank == 0:
    print("all is well")
transport.close()
