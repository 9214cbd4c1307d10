"""The wires: transports, schedules, collectives and strategies.

This layer knows nothing of Transformers or of experiments. Read it in this order: `schedule` (what moves
when), `collectives` (the algorithms, as rounds), `transport` (how bytes move), `execute` (one rank's part of
a schedule), `strategy` (what a trainer talks to).
"""

if __name__ != "bigbatch.comm":
    raise ImportError(
        f"This package was imported as {__name__!r}, but it is part of bigbatch and its name is 'bigbatch.comm': "
        "a top-level 'comm' would replace Jupyter's package of that name. Write 'import bigbatch.comm', and start "
        "Python in another folder than the one that holds bigbatch's sources, or install bigbatch first."
    )
