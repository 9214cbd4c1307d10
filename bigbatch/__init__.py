"""bigbatch: what does a bigger batch buy, and what does moving the gradients cost?

Three layers: `bigbatch.comm` (the wires), `bigbatch` itself (the trainer) and `bigbatch.experiments` (the bench).
"""

from importlib.metadata import version

__version__ = version("bigbatch")
