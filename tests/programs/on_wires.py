"""Run a body on real wires: python on_wires.py BODY STRATEGY[,STRATEGY...] [ORACLE]. Exits with 0 if all is well."""

import sys
from pathlib import Path

import numpy as np
import torch
from bodies import (
    UPDATES,
    ask_what_runs_in_a_thread,
    gather_everything,
    name_who_is_missing,
    refuse_what_differs,
    strategy_named,
    train,
    train_until,
)
from halves import sums_in_half_precision, trains_in_half_precision

from bigbatch.comm.measuring.conformance import on_wires
from bigbatch.comm.transports import mpi
from bigbatch.comm.transports.launch import detect

body, names, *oracle = sys.argv[1:]
torch.set_num_threads(1)


def conform(strategy, transport):
    found = on_wires(strategy.collective, transport)
    assert not found, found


def equal_the_oracle(strategy, transport):
    expected, validation = torch.load(oracle[0])
    # (accumulation, bytes of a bucket, overlap): one bucket; many; many, and sent while backward runs.
    for accumulation, bucket_bytes, overlap in ((1, 25 * 2**20, True), (2, 1000, False), (4, 2000, True)):
        result = train(transport, strategy, accumulation, bucket_bytes, overlap=overlap)
        if result is not None:
            torch.testing.assert_close(result[0], expected, rtol=1e-12, atol=1e-14)
            assert abs(result[1] - validation) < 1e-12


def stop_and_go_on(strategy, transport):
    """ "whole" keeps the parameters; "stopped" a state after some updates; "resumed" ends with the same parameters."""
    folder = Path(oracle[0])
    kept = {what: folder / f"{name}-{what}-{transport.rank}.pt" for what in ("whole", "state")}
    state = torch.load(kept["state"], weights_only=False) if body == "resumed" else None
    result, state = train_until(transport, strategy, UPDATES if body != "stopped" else 7, state)
    if body == "stopped":
        torch.save(state, kept["state"])
    elif body == "whole":
        torch.save(result, kept["whole"])
    elif result is not None:
        assert torch.equal(result, torch.load(kept["whole"])), name


def in_pieces(strategy, transport):
    """Everything as usual, though MPI is given 3,000 bytes at once at most; and longer messages from whoever sends."""
    mpi.LARGEST_MESSAGE = 3000
    conform(strategy, transport)
    own = np.arange(1003) + 10_000 * transport.rank
    if transport.rank:
        transport.isend(own, 0, tag=7).wait()
        return
    room = np.empty_like(own)
    sources = []
    for _ in range(1, transport.size):
        sources.append(transport.irecv(room, tag=7).wait())
        assert (room == np.arange(1003) + 10_000 * sources[-1]).all()
    assert sorted(sources) == list(range(1, transport.size))


BODIES = {
    "beside": lambda _, transport: ask_what_runs_in_a_thread(transport),
    "conform": conform,
    "differ": lambda strategy, transport: refuse_what_differs(strategy.collective, transport),
    "half sums": lambda strategy, transport: sums_in_half_precision(strategy.collective, transport),
    "half training": trains_in_half_precision,
    "gather": lambda _, transport: gather_everything(transport),
    "pieces": in_pieces,
    "missing": lambda strategy, transport: name_who_is_missing(strategy.collective, transport),
    **dict.fromkeys(("whole", "stopped", "resumed"), stop_and_go_on),
    "train": equal_the_oracle,
}

for name in names.split(","):
    strategy = strategy_named(name)
    transport = strategy.connect(detect(), "cpu", deadline=60)
    try:
        BODIES[body](strategy, transport)
    except BaseException:
        import traceback

        print(f"{body} {name}:", file=sys.stderr)
        traceback.print_exc()
        transport.abort(1)
    if body != "missing":
        with transport:
            transport.barrier()
            last = transport.rank == 0
if body == "missing":
    # One rank was never there, so that nobody can close in good order.
    print("named", file=sys.stderr, flush=True)
    import time

    time.sleep(4)
    transport.abort(0)
if last:
    print("all is well")
