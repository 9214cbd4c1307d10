from functools import partial

import torch


def mine(learning_rate):
    """Plain gradient descent, ten times as fast as it was asked to be."""
    return partial(torch.optim.SGD, lr=10 * learning_rate)
