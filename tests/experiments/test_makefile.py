"""The Makefile: whatever a user's shell has for other Pythons, the one in .venv runs as it is meant to."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_settings_for_other_pythons_are_left_behind():
    """PYTHONOPTIMIZE takes assertions away (nose 504); PYTHONPATH may lead to another installation."""
    foreign = {"PYTHONOPTIMIZE": "1", "PYTHONPATH": "/elsewhere", "PYTHONHOME": "/nowhere", "PYTHONDEVMODE": "1"}
    foreign |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "theirs"}
    seen = subprocess.run(
        ["make", "-s", "-f", "-", "seen"],
        input="include Makefile\nseen:\n\t@env; echo python is $(PYTHON)\n",
        cwd=ROOT,
        env={**os.environ, **foreign, "PYTHON": "python3.13"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.splitlines()
    assert not [line for line in seen if line.partition("=")[0] in foreign]
    assert "python is python3.13" in seen
