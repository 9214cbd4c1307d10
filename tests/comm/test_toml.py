"""Files of settings in TOML: read, or refused in one sentence; networks with every wrong value."""

import math
import os
import tomllib
from pathlib import Path

import pytest

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.files import MB
from bigbatch.comm.simulation.network_file import read_network
from bigbatch.comm.toml import read_toml

BOM = b"\xef\xbb\xbf"

LITERALS = {
    "a flag": "true",
    "a date": "2026-01-01",
    "a time": "07:32:00",
    "a moment": "1979-05-27T07:32:00Z",
    "a table": "{ a = 1 }",
    "an empty table": "{}",
    "a list": "[1, 2]",
    "an empty list": "[]",
    "nested lists": "[[1], [2]]",
    "a list of tables": "[{ a = 1 }]",
    "empty text": '""',
    "a word": '"no"',
    "text with NUL": '"a\\u0000b"',
    "not a number": "nan",
    "infinite": "inf",
    "infinitely little": "-inf",
    "negative": "-1",
    "a fraction": "0.5",
    "400 digits": "9" * 400,
    "hexadecimal of 5,000 digits": "0x" + "f" * 5000,
    "digits of another script": '"٣"',
    "a decimal comma": '"0,5"',
}


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    # tomli 304: "Invalid statement (at line 1, column 1)".
    network, plain = tmp_path / "network.toml", b"alpha = 1e-6\r\nbandwidth = 1e9\r\nsource = 'measured'\r\n"
    network.write_bytes(plain)
    expected = read_network(network)
    network.write_bytes(BOM + plain)
    assert read_network(network) == expected


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"alpha = 1\nalpha = 2\n", "is not TOML: Cannot overwrite a value"),
        (b"alpha\n", "is not TOML: Expected '='"),
        ("alpha = 1".encode("utf-16"), "is not in UTF-8: byte 0 fits no character. Convert it"),
        (b"alpha = '\xff'", "is not in UTF-8: byte 9 fits no character. Convert it"),
        (b"alpha = " + b"9" * 5000, "is not TOML: "),
        (b"alpha = " + b"[" * 5000 + b"]" * 5000, "is not TOML that can be read: it is nested too deeply"),
        (b"#" * (2 * MB), "has 2,097,152 bytes, and at most 1,048,576 are read"),
    ],
)
def test_what_is_no_toml_is_refused_with_the_files_name(tmp_path, content, sentence):
    file = tmp_path / "some.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError) as refused:
        read_toml(file, f"The network {file}")
    assert f"The network {file} " in str(refused.value)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_only_regular_files_are_read(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # nobody writes to it: to open it as a file would wait for ever
    for path, why in (
        (pipe, "is a pipe or a device"),
        ("/dev/zero", "is a pipe or a device"),
        (tmp_path, "is a folder"),
        (tmp_path / "none", "No such file"),
        (tmp_path / ("9" * 400), "File name too long"),
    ):
        with pytest.raises(ConfigurationError, match=f"cannot be read: .*{why}"):
            read_toml(Path(path), "The configuration")


PLAIN = {"alpha": "1e-6", "bandwidth": "1e9"}
KEYS = ("name", "alpha", "bandwidth", "gamma", "node_size", "nics", "inside", "leaf_size", "oversubscription", "source",
        "larger")  # fmt: skip


@pytest.mark.parametrize("key", [*KEYS, "inside.alpha", "inside.bandwidth", "larger.bytes", "larger.alpha", "beta"])
def test_every_key_of_a_network_takes_its_kind_of_value_and_no_other(tmp_path, key):
    """What `source = 7` or a number of 400 digits raised was an AttributeError or an OverflowError."""
    file = tmp_path / "network.toml"
    for literal in LITERALS.values():
        entries = {**PLAIN, key: literal}
        lines = [f"{name} = {value}" for name, value in entries.items() if "." not in name]
        table, _, inner = key.partition(".")
        if inner:
            own = {**PLAIN, **({"bytes": "100"} if table == "larger" else {}), inner: literal}
            lines += ["[[larger]]" if table == "larger" else "[inside]"]
            lines += [f"{name} = {value}" for name, value in own.items()]
        file.write_text("\n".join(lines), encoding="utf-8")
        network, refused = None, ""
        try:
            network = read_network(file)
        except ConfigurationError as error:
            refused = str(error)
        if network is None:
            assert refused.startswith(f"The network {file}: ")
            assert key.rpartition(".")[2] in refused
            assert "\n" not in refused
            assert len(refused) < 400 + len(str(file))
            continue
        assert math.isfinite(network.gamma)
        assert isinstance(network.name + network.source, str)
        assert all(math.isfinite(piece.alpha) and piece.bandwidth > 0 for piece in network.wires.pieces)
        accepted = tomllib.loads(f"x = {literal}")["x"]
        assert isinstance(accepted, str | int | float | list), f"{key} = {literal}"


def test_an_unknown_key_of_a_network_is_told_the_nearest(tmp_path):
    file = tmp_path / "network.toml"
    file.write_text("alpha = 1\nbandwith = 1\n")
    with pytest.raises(
        ConfigurationError, match=r"unknown key 'bandwith' \(did you mean 'bandwidth'\?\). Known: alpha"
    ):
        read_network(file)
    file.write_text("alpha = 1\nbandwidth = 1\n[[larger]]\nbyte = 3\n")
    with pytest.raises(ConfigurationError, match=r"larger 1: unknown key 'byte' \(did you mean 'bytes'\?\)"):
        read_network(file)
