"""Train a model of Hugging Face in a loop of one's own, on rows of `input_ids` and `labels`, over any strategy.

mpirun -n 2 python docs/how-to/own_loop.py
"""

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GPT2Config, GPT2LMHeadModel

import bigbatch


def collated(rows):
    """One batch of some rows: tokens that are padded to the longest, and labels of -100 where there is padding."""
    tokens, labels = ([torch.tensor(row[name]) for row in rows] for name in ("input_ids", "labels"))
    mask = pad_sequence([torch.ones_like(one) for one in tokens], batch_first=True)
    padded = pad_sequence(tokens, batch_first=True), pad_sequence(labels, batch_first=True, padding_value=-100)
    return {"input_ids": padded[0], "attention_mask": mask, "labels": padded[1]}


def train(model, rows, rows_at_once, micro_batches, strategy="ring", transport=None, **settings):
    """Train a model of transformers by AdamW, and return the mean loss of every update."""
    adapter = bigbatch.from_transformers(model)
    losses = []
    batches = [collated(rows[start : start + rows_at_once]) for start in range(0, len(rows), rows_at_once)]
    with bigbatch.attach(adapter, torch.optim.AdamW, strategy=strategy, transport=transport, **settings) as session:
        for step, batch in enumerate(session.shard(batches), start=1):
            loss, tokens = adapter.loss(batch)  # a sum over tokens, and how many they are
            report = session.backward(loss, tokens, last=step % micro_batches == 0)
            if report is not None:
                losses.append(report.loss / report.weight)
    return losses


if __name__ == "__main__":
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    rows = [{"input_ids": [*range(first, first + 9)]} for first in range(1, 91)]  # as a data set has them
    losses = train(model, [{**row, "labels": row["input_ids"]} for row in rows * 4], 5, 2, lr=3e-3)
    print(f"loss: {losses[0]:.2f} at first, {losses[-1]:.2f} at last")
