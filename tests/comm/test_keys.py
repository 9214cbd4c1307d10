"""Files of keys that somebody else has written, or changed: they are keys that belong together, or refused."""

import json
from pathlib import Path

import pytest

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.server.network.keys import Keys

CHANGES = {
    "spaces": {"server_secret": " " * 40},
    "letters that no key has": {"worker_public": "'" * 40},
    "not in ASCII": {"server_public": "ä" * 40},
    "too large a number": {"server_public": "#" * 40},
    "too short": {"worker_secret": "x" * 35},
    "another server's": {"server_public": Keys.new().server_public},
    "another worker's": {"worker_public": Keys.new().worker_public},
    "the end of a line": {"worker_secret": Keys.new().worker_secret[:39] + "\n"},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Keys.new().write(tmp_path / "course.keys")
    return tmp_path / "course.keys"


@pytest.mark.parametrize("change", CHANGES)
def test_what_are_no_keys_or_no_pairs_is_refused_when_it_is_read(file, change):
    """zeromq/libzmq answers with "Invalid argument"; a wrong pair would only leave workers waiting."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **CHANGES[change]}))
    with pytest.raises(ConfigurationError, match=r"course.keys holds no keys"):
        Keys.read(file)


def test_what_was_written_is_read(file, tmp_path):
    keys = Keys.read(file)
    keys.for_workers().write(tmp_path / "workers.keys")
    assert Keys.read(tmp_path / "workers.keys") == keys.for_workers()
