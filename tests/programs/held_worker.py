"""A worker that says which phase it is in and stays there until a file named "go" appears: `held_worker.py PHASE ...`.

What follows the phase are the options of `bigbatch-exp ps worker`.
"""

import sys
import time
from pathlib import Path

from bigbatch.comm.server.network.remote_shard import RemoteShard
from bigbatch.experiments.commands.main import main

PHASE = sys.argv.pop(1)


def hold() -> None:
    print(f"holding: {PHASE}", file=sys.stderr, flush=True)
    until = time.monotonic() + 100
    while not Path("go").exists() and time.monotonic() < until:
        time.sleep(0.05)


def before(name: str, nth: int = 1) -> None:
    """Hold before the nth call of a method."""
    own = getattr(RemoteShard, name)
    seen = [0]

    def held(self: RemoteShard, *arguments: object, **named: object) -> object:
        seen[0] += 1
        if seen[0] == nth:
            hold()
        return own(self, *arguments, **named)

    setattr(RemoteShard, name, held)


{
    "joining": lambda: before("join"),
    "joined": lambda: before("begin_read"),
    "reading": lambda: before("attempt"),
    "computing": lambda: before("begin", 3),
    "pushing": lambda: before("begin_read", 4),  # the push is out, the read is not
    "waiting": lambda: before("attempt", 4),
}[PHASE]()
sys.argv[1:1] = ["ps", "worker"]
main()
