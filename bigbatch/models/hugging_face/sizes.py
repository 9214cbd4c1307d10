"""How large a model of transformers is: its parameters, and what a token costs."""

from typing import Any

from torch import nn

from bigbatch.models.settings import STACKS
from bigbatch.models.sizes import ModelSize, training_flops
from bigbatch.tasks.task import Task


def size_of(model: Any, task: Task, name: str) -> ModelSize:
    """Computes the size of a model of transformers for a task.

    A token is multiplied with every parameter but those of tables in which it is only looked up. For each target of a
    task that reads a source, a share of the source is read, too.

    Args:
        model: the model, which may have no memory.
        task: the task.
        name: the model's name in tables and figures.
    """
    config = model.config.get_text_config()
    layers, width = int(config.num_hidden_layers), int(config.hidden_size)
    counts = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    read, written = task.source_tokens, task.example_tokens
    if task.default_model == "encoder-decoder":
        encoder = _multiplied(model.get_encoder())
        flops = training_flops(_multiplied(model) - encoder, layers, width, round(read + written))
        flops += read / written * training_flops(encoder, layers, width, round(read))
        layers *= STACKS[task.default_model]
    elif task.default_model == "encoder":
        flops = read / written * training_flops(_multiplied(model), layers, width, round(read))
    else:
        flops = training_flops(_multiplied(model), layers, width, task.context)
    parts = tuple(reversed(list(filter(None, counts))))
    return ModelSize(name, layers, width, task.context, task.vocabulary_size, sum(counts), flops, parts)


def _multiplied(model: Any) -> int:
    """Parameters of a model that a token is multiplied with: a table counts if it is the output layer, too."""
    parameters = {id(parameter): parameter.numel() for parameter in model.parameters()}
    tables: set[int] = set()
    matrices: set[int] = set()
    for part in model.modules():
        own = {id(parameter) for parameter in part.parameters(recurse=False)}
        (tables if isinstance(part, nn.Embedding) else matrices).update(own)
    return sum(number for key, number in parameters.items() if key not in tables - matrices)
