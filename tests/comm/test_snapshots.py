"""Snapshots that somebody else wrote, or that a disk has damaged: one sentence each, and nothing is run or served.

Kind K10, from checkpoints that a full disk has cut: https://github.com/facebookresearch/metaseq/issues/53,
https://github.com/ultralytics/ultralytics/pull/25428 (what users saw), https://github.com/pytorch/pytorch/issues/10577.
"""

import copy
import hashlib
import io
import os
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up_network import ELEMENTS, FACTS
from torch import nn

from bigbatch.comm.errors import ConfigurationError, MalformedError
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.server.consistency import Asynchronous
from bigbatch.comm.server.network.elastic_server import NetworkServer
from bigbatch.comm.server.network.membership import Session
from bigbatch.comm.server.network.snapshots import Snapshots
from bigbatch.comm.server.shard import Shard
from bigbatch.comm.server.staleness import StaleGradients

SHARES = 10


def new_server() -> NetworkServer:
    module = nn.Linear(ELEMENTS, 2).float()
    parameters = FlatParameters(module)
    values = parameters.values.clone()
    optimizer = partial(torch.optim.Adam, lr=0.1)
    shard = Shard(values, parameters.pieces(0, len(values)), optimizer, Asynchronous(), StaleGradients())
    return NetworkServer(shard, SHARES, '"work"', FACTS)


def trained_server() -> NetworkServer:
    """A server that has trained on six of ten shares, and has lost the worker that had the seventh."""
    server = new_server()
    session = Session(5)
    server.members.admit(session, 1, 0, 0.0)
    server.shard.read(session.worker)
    for share in range(6):
        assert server.shares.take() == share
        landing = server.shard.landing()
        landing.copy_(torch.arange(len(landing)) + share)
        server.shard.push(session.worker, landing, 2.0, 1.0, finite=True)
        server.shares.put(share)
        session.pushed += 1
    session.share = server.shares.take()
    session.notes[0] = (1.0, [0.0, 1.0])
    return server


@pytest.fixture(scope="module")
def genuine() -> dict:
    return trained_server().state_dict()


def test_a_genuine_snapshot_is_gone_on_from(tmp_path: Path, genuine):
    snapshots = Snapshots(tmp_path / "state")
    assert snapshots.newest() is None
    snapshots.save(genuine)
    server = new_server()
    server.load_state_dict(snapshots.newest())
    assert server.shard.version == 6
    assert list(server.shares.returned) == [6]
    assert server.shares.undone == 4
    torch.testing.assert_close(server.shard.values, genuine["shard"]["values"], rtol=0, atol=0)
    assert server.sessions[5].pushed == 6
    assert server.shard.settled_state()["optimizer"]["state"][0]["step"] == 6


def change(*keys, to):
    """Replaces one entry, deep in a state."""

    def apply(state):
        inner = state
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to(inner[keys[-1]]) if callable(to) else to

    return apply


def without(*keys):
    def apply(state):
        inner = state
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]

    return apply


def not_a_number(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[0] = torch.nan
    return tensor


CHANGES = {
    "parameters too short": (change("shard", "values", to=lambda values: values[:-1]), r"\[7\] torch.float32 instead"),
    "parameters of two dimensions": (change("shard", "values", to=lambda v: v.view(2, 4)), r"\[2, 4\] torch.float32"),
    "parameters of float64": (change("shard", "values", to=torch.Tensor.double), r"\[8\] torch.float64 instead"),
    "parameters with a NaN": (change("shard", "values", to=not_a_number), "not all finite"),
    "parameters that are a list": (change("shard", "values", to=torch.Tensor.tolist), "a list instead"),
    "no parameters": (without("shard", "values"), "'values' is missing"),
    "no shard": (without("shard"), "no parameters"),
    "a shard that is a list": (change("shard", to=[1]), "no parameters"),
    "a version that is a word": (change("shard", "version", to="6"), "'version' is '6' where a count"),
    "a version below zero": (change("shard", "version", to=-1), "'version' is '-1'"),
    "a version of true": (change("shard", "version", to=True), "'version' is 'True'"),
    "a version ahead of the updates": (change("shard", "version", to=9), "contradict"),
    "other counts of gradients": (change("shard", "taken", to=7), "contradict"),
    "tokens that are NaN": (change("shard", "tokens", to=float("nan")), "'tokens' is 'nan'"),
    "a staleness that is a list": (change("shard", "staleness", to=[6]), "'staleness'"),
    "a staleness of words": (change("shard", "staleness", to={"0": 6}), "'staleness'"),
    "no optimiser": (change("shard", "optimizer", to=None), "no state of an optimiser"),
    "an optimiser with other groups": (change("shard", "optimizer", "param_groups", to=list), "cannot go on|groups"),
    "an optimiser without groups": (change("shard", "optimizer", "param_groups", to=[]), "groups"),
    "an optimiser without its options": (without("shard", "optimizer", "param_groups", 0, "betas"), "groups"),
    "an optimiser of other parameters": (change("shard", "optimizer", "state", to=lambda s: {9: s[0]}), "other param"),
    "an optimiser's average too short": (
        change("shard", "optimizer", "state", 0, "exp_avg", to=lambda values: values[:1]),
        "cannot go on from its state",
    ),
    "an optimiser's average with a NaN": (
        change("shard", "optimizer", "state", 0, "exp_avg", to=not_a_number),
        "finite",
    ),
    "an optimiser's average missing": (without("shard", "optimizer", "state", 0, "exp_avg_sq"), "cannot go on"),
    "an infinite learning rate": (change("shard", "optimizer", "param_groups", 0, "lr", to=float("inf")), "finite"),
    "no shares": (without("shares"), "which shares"),
    "shares that are a number": (change("shares", to=6), "which shares"),
    "a share twice": (change("shares", "in", to=[[0, 4], [3, 6]]), "the share 3 twice"),
    "a share too large": (change("shares", "in", to=[[0, 11]]), "names the share 10, but there are 10"),
    "a share below zero": (change("shares", "in", to=[[-1, 4]]), "stands where shares"),
    "a share that is no number": (change("shares", "in", to=[["a", "b"]]), "stands where shares"),
    "shares in that were not handed out": (change("shares", "handed_out", to=3), "3 shares of 10 were handed out"),
    "more shares handed out than there are": (change("shares", "handed_out", to=11), "11 shares of 10"),
    "no sessions": (without("sessions"), "which workers"),
    "sessions that are a list": (change("sessions", to=[5]), "which workers"),
    "a session without a name": (
        change("sessions", to={"x": {"life": 1, "pushed": 1, "left": True, "notes": []}}),
        "which",
    ),
    "a session without its pushes": (without("sessions", "5", "pushed"), "which workers"),
    "a session with pushes below zero": (change("sessions", "5", "pushed", to=-3), "which workers"),
    "a session whose notes are numbers": (change("sessions", "5", "notes", to=[3]), "which workers"),
    "a note of words": (change("sessions", "5", "notes", to=[[0, 1.0, "a"]]), "which workers"),
    "lost gradients that are a word": (change("lost", to="many"), "which workers"),
}


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "an optimiser with other groups"])
def test_a_snapshot_whose_content_is_not_what_belongs_there_is_refused_by_what_is_wrong(tmp_path, genuine, name):
    """The digest is right, as if somebody had written the file by the same program: the schema finds it."""
    apply, message = CHANGES[name]
    state = copy.deepcopy(genuine)
    apply(state)
    snapshots = Snapshots(tmp_path)
    snapshots.save(state)
    server = new_server()
    with pytest.raises(MalformedError, match=message) as refused:
        server.load_state_dict(snapshots.newest())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("state", [[1, 2], 3, "state", None, torch.ones(3), {}, {"arm": 3}])
def test_what_is_no_state_at_all_is_refused(tmp_path, state):
    snapshots = Snapshots(tmp_path)
    snapshots.save(state)
    with pytest.raises((ConfigurationError, MalformedError)):
        new_server().load_state_dict(snapshots.newest())


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def written(content: bytes) -> bytes:
    """A file as `Snapshots` writes it, its digest included, around any content."""
    return b"bigbatch snapshot sha256 " + hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def saved(state) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_a_snapshot_never_runs_what_is_in_it(tmp_path: Path):
    for content in (pickle.dumps(Evil(tmp_path / "evil")), saved({"arm": Evil(tmp_path / "evil")})):
        for file in (content, written(content)):
            (tmp_path / "snapshot.pt").write_bytes(file)
            with pytest.raises(ConfigurationError, match="is no snapshot of a server"):
                Snapshots(tmp_path).newest()
    assert not (tmp_path / "evil").exists()


def test_files_that_are_none_are_refused_at_once(tmp_path: Path, genuine):
    def kept(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        return folder / "snapshot.pt"

    kept("empty").touch()
    kept("folder").mkdir()
    os.mkfifo(kept("fifo"))
    kept("dangling").symlink_to("nowhere")
    kept("zeros").symlink_to("/dev/zero")
    kept("text").write_text("text")
    kept("older").write_bytes(saved(genuine))
    kept("half").write_bytes(written(saved(genuine))[:1000])
    kept("longer").write_bytes(written(saved(genuine)) + b"\0")
    kept("title").write_bytes(written(b"")[:50])
    kept("json").write_bytes(written(b"{}"))
    for folder in sorted(path for path in tmp_path.iterdir()):
        with pytest.raises(ConfigurationError, match="is no snapshot of a server: ") as refused:
            Snapshots(folder).newest()
        assert str(folder) in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def file(genuine) -> bytes:
    return written(saved(genuine))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_snapshot_with_any_bit_flipped_cut_or_doubled_is_refused(tmp_path: Path, file: bytes, data):
    kind = data.draw(st.sampled_from(["flip", "cut", "double", "insert", "swap"]))
    place = data.draw(st.integers(0, len(file) - 1))
    length = data.draw(st.integers(1, 64))
    if kind == "flip":
        changed = bytearray(file)
        changed[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        changed = file[:place]
    elif kind == "double":
        changed = file[: place + length] + file[place:]
    elif kind == "insert":
        changed = file[:place] + data.draw(st.binary(min_size=1, max_size=8)) + file[place:]
    else:
        changed = file[place:] + file[:place] if place else file + b" "
    (tmp_path / "snapshot.pt").write_bytes(changed)
    with pytest.raises(ConfigurationError, match="is no snapshot of a server: "):
        Snapshots(tmp_path).newest()


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-2, 12), max_size=3),
    st.dictionaries(st.sampled_from(["0", "state", "x"]), st.integers(), max_size=2),
    st.sampled_from([torch.ones(2), torch.full((8,), torch.nan), torch.zeros(8, dtype=torch.int64)]),
)


def places(value, path=()):
    """The paths to every entry of nested dictionaries and lists."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*path, key)
        yield from places(inner, (*path, key))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_snapshot_with_any_entry_replaced_is_gone_on_from_or_refused(genuine, data):
    """Whatever stands in it, there is one of our errors, or a server that works: never another error."""
    state = copy.deepcopy(genuine)
    path = data.draw(st.sampled_from(list(places(genuine))))
    change(*path, to=data.draw(JUNK))(state)
    server = new_server()
    try:
        server.load_state_dict(state)
    except MalformedError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either is right
        return
    assert server.shard.values.isfinite().all()
    session = Session(77)
    server.members.admit(session, 1, 0, 0.0)
    server.shard.read(session.worker)
    landing = server.shard.landing()
    landing.fill_(1.0)
    server.shard.push(session.worker, landing, 2.0, 1.0, finite=True)
    share = server.shares.take()
    assert share is None or 0 <= share < SHARES
    server.status(0.0)
    server.state_dict()
    assert np.isfinite(server.shard.values.numpy()).all()


def test_a_disk_that_is_full_is_said_and_the_snapshot_before_is_kept(tmp_path: Path, genuine):
    snapshots = Snapshots(tmp_path)
    snapshots.save(genuine)
    (tmp_path / "snapshot.pt.next").symlink_to("/dev/full")
    with pytest.raises(
        ConfigurationError, match=r"snapshot.pt.next cannot be written: No space left on device"
    ) as full:
        snapshots.save({"another": torch.ones(100_000)})
    assert "\n" not in str(full.value)
    assert not os.path.lexists(tmp_path / "snapshot.pt.next")
    assert snapshots.newest()["shard"]["version"] == 6
