"""Facts: what a worker must have as its servers have it, and how to say what differs."""

from typing import Any


def difference(theirs: Any, ours: list[list[str]]) -> str:
    """The first thing in which a worker's facts differ from the server's, in words."""
    if not isinstance(theirs, list):
        return "it did not say what it has"
    for place, (what, name, value) in enumerate(ours):
        if place >= len(theirs):
            return f"the worker lacks the {what} {name!r} ({value})"
        if theirs[place] != [what, name, value]:
            text = " ".join(map(str, theirs[place])) if isinstance(theirs[place], list) else str(theirs[place])
            return f"the worker has {text[:200]!r} where the server has the {what} {name!r}, {value}"
    return f"the worker has {str(theirs[len(ours)])[:200]} besides, which the server lacks"
