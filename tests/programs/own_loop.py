"""A training loop of one's own, as a user writes it, for a launcher to start: STRATEGY FOLDER."""

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1] / "bigbatch"))

from test_session import data, flat, model, summed_loss

import bigbatch

strategy, folder = sys.argv[1], Path(sys.argv[2])
torch.set_num_threads(1)
module = model(0)
session = bigbatch.attach(module, torch.optim.AdamW, lr=1e-2, strategy=strategy)
for _ in range(2):
    for step, batch in enumerate(session.shard(data(13))):
        loss, tokens = summed_loss(module, batch)
        session.backward(loss, tokens, last=(step + 1) % 2 == 0)
if session.worker is not None:
    torch.save(flat(module), folder / f"{session.worker}.pt")
