"""A command line that is only looked at answers at once: it imports nothing that takes long."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "scipy", "matplotlib", "mpi4py", "zmq", "tokenizers", "transformers", "pandas"}
"""Nothing that is only looked at may import these."""

LIGHT = ("help", "version", "misspelt", "words")
"""Looks that need no table of presets, and so no NumPy either."""

LOOKS = {
    "help": (["--help"], {}),
    "version": (["--version"], {}),
    "misspelt": (["rnig"], {}),
    "strategy's help": (["ring", "--help"], {}),
    "server's help": (["ps", "--help"], {}),
    "command's help": (["bench", "--help"], {}),
    "words": ([], {"COMP_WORDS": "bigbatch-exp r", "COMP_CWORD": "1"}),
    "options": ([], {"COMP_WORDS": "bigbatch-exp ring --lay", "COMP_CWORD": "2"}),
    "choices": ([], {"COMP_WORDS": "bigbatch-exp ring --optimizer ad", "COMP_CWORD": "3"}),
    "strategies": ([], {"COMP_WORDS": "bigbatch-exp compare ring re", "COMP_CWORD": "3"}),
}

PROGRAM = """
import json, resource, sys
sys.argv[0] = "bigbatch-exp"
from bigbatch.experiments.commands.main import main
try:
    main()
except SystemExit:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps([sorted(sys.modules), used.ru_utime + used.ru_stime]), file=sys.stderr)
"""


@pytest.mark.parametrize("look", LOOKS)
def test_nothing_heavy_is_imported(look):
    arguments, completion = LOOKS[look]
    variables = {**completion, "_BIGBATCH_EXP_COMPLETE": "bash_complete"} if completion else {}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    modules, _ = json.loads(result.stderr.splitlines()[-1])
    heavy = HEAVY | {"numpy"} if look in LIGHT else HEAVY
    assert heavy & set(modules) == set()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("bigbatch-exp ri", {"ring"}),
        ("bigbatch-exp va", {"validate"}),
        ("bigbatch-exp ring --noi", {"--noise-scale"}),
        ("bigbatch-exp ring --optimizer la", {"lars", "lamb"}),
        ("bigbatch-exp ring --arms large,s", {"large,small"}),
        ("bigbatch-exp ps --consistency a", {"async"}),
        ("bigbatch-exp ps st", {"status"}),
        ("bigbatch-exp ring --simulate 4 --network ethernet-1", {"ethernet-1g", "ethernet-10g", "ethernet-100g"}),
        ("bigbatch-exp simulate ring --model gpt2-s", {"gpt2-small"}),
        ("bigbatch-exp figure crit", {"critical-batch"}),
        ("bigbatch-exp show tr", {"tree"}),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_strategies_options_and_presets(line, found, shell):
    words = line.split(" ")
    variables = {
        "_BIGBATCH_EXP_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    result = subprocess.run(
        ["bigbatch-exp"],
        env={**os.environ, **variables, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = result.stdout.splitlines()
    values = {one.partition(",")[2] for one in lines} if shell == "bash" else set(lines[1::3])
    assert values == found
