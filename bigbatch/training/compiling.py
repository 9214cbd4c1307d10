"""Compiling a model with torch.compile, in parts, so that gradients still come one part after the other.

A part's compiled backward hands over all of its gradients at once. Of a model compiled as a whole they would all come
at the end, and nothing could be sent while backward runs. Blocks are alike, so that what is compiled of one serves all.
"""

import os
import shutil
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental import _config as symbolic

from bigbatch.comm.errors import ConfigurationError
from bigbatch.models.blocks import Block

COMPILERS = ("g++", "clang++")
"""C++ compilers that torch looks for, besides the one that $CXX names."""


class CompiledParts:
    """Has torch compile the parts of a model when they are first called: our own blocks, or a whole module of others.

    Names of parameters, hooks and `state_dict` stay as they are. Random numbers are drawn as without compiling.

    Args:
        model: the model.

    Raises:
        ConfigurationError: there is no C++ compiler.
    """

    def __init__(self, model: nn.Module) -> None:
        named = os.environ.get("CXX")
        if not any(map(shutil.which, [named] if named else COMPILERS)):
            raise ConfigurationError(
                f"--compile needs a C++ compiler, but there is no {named or ' and no '.join(COMPILERS)} here: install "
                "one (apt install g++), or leave --compile out."
            )
        torch.compiler.set_stance("default")
        symbolic.use_duck_shape = False  # else as many examples as tokens would always be as many
        blocks: list[nn.Module] = [part for part in model.modules() if isinstance(part, Block)]
        for part in blocks or [model]:
            part.compile(backend=_compile, dynamic=True)

    def settle(self) -> None:
        """Compiles nothing from now on, until other parts are to be compiled: compiling takes longer than an update.

        What is compiled serves batches of other sizes, too, but for a length of 1, and for what a model treats in a way
        of its own. Where nothing is compiled for a batch, the model is computed as if it were not compiled.
        """
        torch.compiler.set_stance("eager_on_recompile")


def _compile(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Any:
    from torch._inductor.compile_fx import compile_fx  # it takes a second to load

    # Of several ranks on one machine each has a core or less; processes that compile for them would be in the way.
    with torch._inductor.config.patch(compile_threads=1):
        return compile_fx(graph, inputs, config_patches={"fallback_random": True})
