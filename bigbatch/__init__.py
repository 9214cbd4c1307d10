"""bigbatch: what does a bigger batch buy, and what does moving the gradients cost?

Three layers: `bigbatch.comm` (communication), `bigbatch` itself (the trainer) and `bigbatch.experiments` (commands,
figures and reports). The names here are the public ones. Each is imported when it is first used, so that
`import bigbatch` itself is quick. Anything that is not listed here may move.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigbatch.comm.transports.cluster import Cluster
    from bigbatch.experiments.api import compare, run, simulate
    from bigbatch.experiments.runs.run import Run
    from bigbatch.experiments.training.settings import Settings
    from bigbatch.models.hugging_face.adapters import from_transformers
    from bigbatch.training.conformance import conform_task
    from bigbatch.training.session import Session, attach

__version__: str

_PUBLIC = {
    "Cluster": "bigbatch.comm.transports.cluster",
    "Run": "bigbatch.experiments.runs.run",
    "Session": "bigbatch.training.session",
    "Settings": "bigbatch.experiments.training.settings",
    "attach": "bigbatch.training.session",
    "compare": "bigbatch.experiments.api",
    "conform_task": "bigbatch.training.conformance",
    "from_transformers": "bigbatch.models.hugging_face.adapters",
    "run": "bigbatch.experiments.api",
    "simulate": "bigbatch.experiments.api",
}

__all__ = [
    "Cluster",
    "Run",
    "Session",
    "Settings",
    "__version__",
    "attach",
    "compare",
    "conform_task",
    "from_transformers",
    "run",
    "simulate",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("bigbatch")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'bigbatch' has no attribute {name!r}; its public names are: {', '.join(__all__)}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
