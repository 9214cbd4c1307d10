"""What an optimiser's learning rate is, step by step."""

from itertools import pairwise

import torch
from torch import nn


def rates_in(make, steps):
    """The rate of every step, as gradients of ones move a weight by it."""
    parameter = nn.Parameter(torch.zeros(1).double())
    parameter.grad = torch.ones(1).double()
    optimizer, places = make([("a", parameter)]), [0.0]
    for _ in range(steps):
        optimizer.step()
        places.append(-parameter.item())
    return [after - before for before, after in pairwise(places)]
