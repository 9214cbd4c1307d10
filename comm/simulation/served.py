"""A synchronous update through parameter servers, as rounds, so that it can be replayed."""

from collections.abc import Iterator

import numpy as np

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.schedule import Round, moved


def synchronous_server(size: int, servers: int = 1) -> Iterator[Round]:
    """Every worker sends every server its part of the gradients, and then gets its part of the values.

    The last `servers` ranks serve. Everyone begins with another one of the others, so that as few as possible meet at
    the same port. Requests and reports, of a few bytes each, are left out.

    Cost for n bytes, W workers, S servers, S divides W, γ ≤ β: 2α + 2nβ·max(1, W/S) + (n/S)γ seconds.

    Args:
        size: ranks, workers and servers together.
        servers: how many of them serve.

    Source: Li et al., "Scaling distributed machine learning with the parameter server" (2014).

    Raises:
        ConfigurationError: nobody is left to work.
    """
    workers = size - servers
    if workers < 1 or servers < 1:
        raise ConfigurationError(f"{servers} of {size} ranks were to serve; at least one must serve, and one work.")
    turn, worker = np.divmod(np.arange(servers * workers), workers)
    part = (worker + turn) % servers
    yield moved(worker, workers + part, chunk=part, reduce=True)
    turn, part = np.divmod(np.arange(workers * servers), servers)
    yield moved(workers + part, (part + turn) % workers, chunk=part, reduce=False)
