"""After a refusal the next training on the same wires begins, though each rank's collector comes at a time of its own.

python after_a_refusal.py STRATEGY[,STRATEGY...] on the wires of whoever started it.
"""

import gc
import sys
import traceback

import torch
from bodies import strategy_named
from torch import nn

from bigbatch import attach
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.transports.launch import detect
from bigbatch.comm.wires.transport import Transport


def refuse_to_start(name: str, transport: Transport) -> None:
    """The session has its memory already when the optimiser refuses its settings."""
    attach(nn.Linear(3, 2), torch.optim.SGD, lr=-1.0, strategy=name, transport=transport)


def refuse_an_update(name: str, transport: Transport) -> None:
    """The parameter that is trained is no longer the model's; the session is nowhere closed."""
    model = nn.Linear(3, 2)
    session = attach(model, torch.optim.SGD, lr=0.1, strategy=name, transport=transport)
    model.weight = nn.Parameter(torch.zeros(2, 3))
    session.backward(model(torch.ones(1, 3)).sum(), 1)


def train(name: str, transport: Transport) -> None:
    """Every rank's gradient is its number: the sum over all, divided by as many tokens, is their mean."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    with attach(model, torch.optim.SGD, lr=1.0, strategy=name, transport=transport) as session:
        session.backward(model(torch.full((1, 1), float(transport.rank))).sum(), 1)
        assert model.weight.item() == -(transport.size - 1) / 2, model.weight


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.disable()
    for strategy in sys.argv[1].split(","):
        wires = strategy_named(strategy).connect(detect(), "cpu", deadline=20)
        try:
            for refused in (refuse_to_start, refuse_an_update):
                for late in range(wires.size):
                    try:
                        refused(strategy, wires)
                    except (ConfigurationError, ValueError):
                        pass
                    else:
                        raise AssertionError(f"{refused.__name__} was not refused")
                    if wires.rank != late:
                        gc.collect()
                    train(strategy, wires)
                    gc.collect()
        except BaseException:
            traceback.print_exc()
            wires.abort(1)
        wires.barrier()
        last = wires.rank == 0
        wires.close()
    if last:
        print("all is well")
