"""What callers in Python give is looked at where it comes in: one sentence, before anything is made or trained."""

import numpy as np
import pytest
import torch
from torch import nn

from bigbatch import Cluster, Settings, attach, conform_task
from bigbatch.comm.errors import ConfigurationError
from bigbatch.tasks.loss import checked_loss

ONE = torch.ones(1, requires_grad=True)


@pytest.mark.parametrize("transport", [3, "ring", Cluster, Cluster(2), 0])
def test_only_a_transport_is_one(transport):
    with pytest.raises(ConfigurationError, match=r"^The transport cannot be "):
        attach(nn.Linear(2, 2), torch.optim.SGD, lr=0.1, transport=transport)


@pytest.mark.parametrize("optimizer", [None, "sgd", torch.optim, torch.optim.SGD([ONE], lr=0.1)])
def test_an_optimiser_is_named_by_its_class(optimizer):
    # A made optimiser where its class was asked for, davda54/sam 29.
    with pytest.raises(ConfigurationError, match=r"^The optimiser cannot be .*: give a class"):
        attach(nn.Linear(2, 2), optimizer, lr=0.1)


@pytest.mark.parametrize("model", [None, nn.Linear, {"a": nn.Linear(2, 2)}, torch.ones(2), "model.pt"])
def test_a_model_is_a_module_for_the_kit_too(model):
    with pytest.raises(ConfigurationError, match=r"^The model must be a torch.nn.Module, but is "):
        conform_task(None, model)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", [None, Settings, "documents", np.float64(3)])
def test_a_task_is_one_for_the_kit(task):
    with pytest.raises(ConfigurationError, match=r"^The task must be a bigbatch.tasks.task.Task, but is "):
        conform_task(task, nn.Linear(2, 2))


@pytest.mark.parametrize("loss", [ONE.to(torch.complex64), ONE.long(), ONE.to("meta"), ONE > 0])
def test_a_loss_is_a_real_number(loss):
    with pytest.raises(
        ConfigurationError, match=r"^The loss cannot be of the type torch\.\w+ on the device \w+: it must"
    ):
        checked_loss("The loss", (loss, 1))


@pytest.mark.parametrize("group", [3, None, {"workers": 2}, Settings])
def test_a_group_of_options_is_of_its_class(group):
    with pytest.raises(ConfigurationError, match=r"^Settings.batch cannot be .*: that is no \w+\.$"):
        Settings(batch=group)
