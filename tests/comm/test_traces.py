"""Traces: what is recorded, that it is of the format's kind, and that it is drawn."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bodies import UPDATES, strategy_named, train
from click.testing import CliRunner
from jobs import SMALL, Run

from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.reducers.collective import Scheduled
from bigbatch.comm.reducers.execute import execute
from bigbatch.comm.schedules.account import account
from bigbatch.comm.simulation.network import Network, wire
from bigbatch.comm.tracing.gather import clock_offset, gather, joined
from bigbatch.comm.tracing.perfetto import lanes, read_trace, trace_events, write_trace
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.wires.recording import COMPUTE, RECEIVE, REDUCE, SEND, UPDATE, WAIT, Span, Trace
from bigbatch.comm.wires.request import ANY, Request
from bigbatch.comm.wires.transport import Group, Transport
from bigbatch.experiments.commands.main import cli
from bigbatch.experiments.figures.timeline import draw_timeline, range_of_updates

ELEMENTS = 1003
SIZES = [1, 2, 4, 5]


def traced(size: int, work, updates: int | None = None) -> list[list[Span]]:
    """What every rank of a cluster records while it does `work(transport)`."""

    def whole(transport: Transport) -> list[list[Span]]:
        offset = clock_offset(transport)
        assert offset == 0.0  # one clock
        trace = transport.trace = Trace(transport.now, updates)
        work(transport)
        transport.trace = None
        return gather(transport, trace, offset)

    ranks, *others = Cluster(size).run(whole)
    assert not any(others)
    return ranks


def ring_after_computing(transport: Transport) -> None:
    """Ranks come to the all-reduce at different times, in simulated seconds."""
    with transport.span(COMPUTE):
        transport.spend(1.0 + (transport.rank * 7) % 5)
    execute(ring, transport, np.arange(ELEMENTS, dtype=np.float32) * transport.rank)


def check_events(ranks: list[list[Span]]) -> list[dict]:
    """The rules of the format that Perfetto relies on; returns the events."""
    events = json.loads(json.dumps(trace_events(ranks), allow_nan=False))
    slices = [event for event in events if event["ph"] == "X"]
    assert len(slices) == sum(map(len, ranks))
    assert all(event["ts"] >= 0 and event["dur"] > 0 for event in slices)
    times = [event["ts"] for event in events if event["ph"] != "M"]
    assert times == sorted(times)
    named = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    assert {(event["pid"], event["tid"]) for event in slices} == named
    assert {e["args"]["name"] for e in events if e["name"] == "process_name"} == {
        f"rank {r}" for r in range(len(ranks))
    }
    bounds = {}
    for event in slices:
        begin, duration = round(event["ts"] * 1000), round(event["dur"] * 1000)
        bounds.setdefault((event["pid"], event["tid"]), []).append((begin, begin + duration))
    for track in bounds.values():
        for (begin, end), (other_begin, other_end) in itertools.combinations(track, 2):
            disjoint = end <= other_begin or other_end <= begin
            nested = begin <= other_begin <= other_end <= end or other_begin <= begin <= end <= other_end
            assert disjoint or nested
    starts = {event["id"]: event for event in events if event["ph"] == "s"}
    finishes = {event["id"]: event for event in events if event["ph"] == "f"}
    assert starts.keys() == finishes.keys()
    assert len(starts) + len(finishes) == sum(event["ph"] in "sf" for event in events)
    for number, start in starts.items():
        finish = finishes[number]
        assert (start["name"], start["cat"]) == (finish["name"], finish["cat"])
        assert finish["bp"] == "e"
        assert events.index(start) < events.index(finish)
        for flow, kind in ((start, SEND), (finish, RECEIVE)):
            when, place = round(flow["ts"] * 1000), (flow["pid"], flow["tid"])
            assert any(begin <= when < end for begin, end in bounds[place])
            assert any(event["cat"] == kind for event in slices if (event["pid"], event["tid"]) == place)
    return events


@pytest.mark.parametrize("size", SIZES)
def test_a_ring_is_recorded_message_by_message(size):
    ranks = traced(size, ring_after_computing)
    expected = account(ring, size, ELEMENTS)
    for rank, spans in enumerate(ranks):
        sent, received = ([span for span in spans if span.kind == kind] for kind in (SEND, RECEIVE))
        assert len(sent) == expected.messages[rank]
        assert sum(span.nbytes for span in sent) == expected.sent[rank]
        assert sum(span.nbytes for span in received) == expected.received[rank]
        assert {span.peer for span in sent} == ({(rank + 1) % size} if size > 1 else set())
        assert {span.peer for span in received} == ({(rank - 1) % size} if size > 1 else set())
        assert sum(span.kind == REDUCE for span in spans) == expected.messages[rank] / 2
        computed = {(span.begin, span.end) for span in spans if span.kind == COMPUTE}
        assert computed == {(0.0, 1.0 + (rank * 7) % 5)}
    events = check_events(ranks)
    assert sum(event["ph"] == "s" for event in events) == expected.messages.sum()


ALPHA, BETA, GAMMA = 5e-6, 1e-9, 1e-10
NETWORK = Network("n", wire(ALPHA, 1 / BETA), gamma=GAMMA)


def simulated(size: int, work) -> list[list[Span]]:
    """What every rank of a cluster with a network records, from the start."""
    cluster = Cluster(size, network=NETWORK)
    for transport in cluster.transports:
        transport.trace = Trace(transport.now)
    cluster.run(work)
    return [transport.trace.spans for transport in cluster.transports]


def check_times(ranks: list[list[Span]]) -> None:
    """Every message and every addition takes as long as the formulas say, where ports serve who comes first."""
    received = {span.message(rank): span for rank, spans in enumerate(ranks) for span in spans if span.kind == RECEIVE}
    heads = []
    for rank, spans in enumerate(ranks):
        left = 0.0
        for send in sorted((span for span in spans if span.kind == SEND), key=lambda span: span.begin):
            begin = max(send.begin, left)
            left = begin + BETA * send.nbytes
            assert send.end == pytest.approx(left, abs=1e-15)
            heads.append((begin + ALPHA, rank, send))
    free = [0.0] * len(ranks)
    assert len(heads) == len(received)
    for head, rank, send in sorted(heads, key=lambda entry: entry[:2]):
        receive = received[send.message(rank)]
        free[send.peer] = max(head, free[send.peer]) + BETA * send.nbytes
        assert receive.end == pytest.approx(max(free[send.peer], receive.begin), abs=1e-15)
    for span in itertools.chain(*ranks):
        if span.kind == REDUCE:
            assert span.end - span.begin == pytest.approx(GAMMA * span.nbytes, abs=1e-15)


def test_in_simulated_time_a_ring_takes_what_the_formulas_say():
    nbytes = 4 * 1000
    ranks = simulated(4, lambda transport: execute(ring, transport, np.ones(4000, dtype=np.float32)))
    check_events(ranks)
    check_times(ranks)
    sent = {span.message(r): span.begin for r, spans in enumerate(ranks) for span in spans if span.kind == SEND}
    for rank, spans in enumerate(ranks):
        for span in spans:
            if span.kind == RECEIVE:  # nothing else is on its way
                assert span.end - sent[span.message(rank)] == pytest.approx(ALPHA + nbytes * BETA)
        assert [span.nbytes for span in spans if span.kind == REDUCE] == [nbytes] * 3
        assert max(span.end for span in spans) == pytest.approx(6 * (ALPHA + nbytes * BETA) + 3 * nbytes * GAMMA)


@pytest.mark.parametrize("name", ["ps", "ps:async"])
def test_in_simulated_time_a_parameter_server_takes_what_the_formulas_say(name):
    ranks = simulated(4, lambda transport: train(transport, strategy_named(name), 1, 4096))
    check_events(ranks)
    check_times(ranks)
    adding = [span for span in ranks[3] if span.kind == REDUCE]
    assert len(adding) >= UPDATES
    assert {span.track for span in adding} == {"work"}
    assert not [span for span in itertools.chain(*ranks) if span.kind == COMPUTE]  # nobody has charged for it
    busy = sorted((s.begin, s.end) for s in ranks[3] if s.kind in (REDUCE, WAIT))
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(busy))


def test_computing_in_simulated_time_is_recorded_once_and_beside_communication():
    def work(transport: Transport) -> None:
        collective = Scheduled(ring, transport)
        with transport.span(COMPUTE, "forward"):  # what torch computes takes no simulated time
            pass
        transport.spend(1e-5, "forward")
        moving = collective.start(torch.ones(10_000))
        with transport.span(COMPUTE, "backward"):
            Group(transport, [0, 1]).spend(3e-5)
        with transport.span(REDUCE, "take in", 100):
            transport.spend(100 * GAMMA)
        moving.wait()

    ranks = simulated(2, work)
    check_events(ranks)
    for spans in ranks:
        assert [(span.name, span.end - span.begin) for span in spans if span.kind == COMPUTE] == [
            ("forward", pytest.approx(1e-5)),
            ("backward", pytest.approx(3e-5)),
        ]
        assert {(span.kind, span.name, span.track) for span in spans if span.kind not in (SEND, RECEIVE)} == {
            (COMPUTE, "forward", "work"),
            (COMPUTE, "backward", "work"),
            (REDUCE, "take in", "work"),
            (REDUCE, "", "communication"),
            (WAIT, "", "work"),
            (WAIT, "", "communication"),
            ("all-reduce", "", "communication"),
        }


def test_waits_are_as_long_as_the_slowest_is_late():
    def work(transport: Transport) -> None:
        transport.spend(2.0 * transport.rank)
        transport.barrier()

    ranks = traced(2, work)
    waited = [sum(span.end - span.begin for span in spans if span.kind == WAIT) for spans in ranks]
    assert waited == [2.0, 0.0]


def test_messages_find_each_other_through_groups_any_source_and_unrecorded_ones():
    def work(transport: Transport) -> None:
        outside = np.zeros(1)
        group = Group(transport, [2, 0, 1])
        for number in range(3):
            with transport.update(number + 1):
                if transport.rank == 2:
                    for _ in range(2):
                        transport.irecv(outside, ANY, tag=5).wait()
                else:
                    group.isend(np.full(1, 3.0), 0, tag=5).wait()
            if transport.rank == 0:  # between two updates, so that nobody records it
                transport.isend(outside, 1, tag=7).wait()
            elif transport.rank == 1:
                transport.irecv(outside, 0, tag=7).wait()

    everything, some = traced(3, work), traced(3, work, updates=2)
    counts = [sum(event["ph"] == "s" for event in check_events(ranks)) for ranks in (everything, some)]
    assert counts == [9, 4]
    assert [span.number for span in some[0] if span.kind == UPDATE] == [1, 2]
    assert {span.message(2)[3] for span in everything[2] if span.kind == RECEIVE and span.peer == 1} == {0, 1, 2}
    both = check_events(joined(everything, some))
    assert sum(event["ph"] == "s" for event in both) == 13


def test_work_beside_has_a_track_of_its_own():
    def work(transport: Transport) -> None:
        def serve(end: Transport) -> None:
            end.irecv(np.empty(1), 0, tag=1).wait()

        serving = transport.start_thread(serve)
        transport.spend(3.0)
        transport.isend(np.ones(1), 0, tag=1).wait()
        serving.wait()

    (spans,) = traced(1, work)
    assert [(span.track, span.end - span.begin) for span in spans if span.kind == WAIT] == [("beside", 3.0)]
    assert sum(event["ph"] == "s" for event in check_events([spans])) == 1


def test_clocks_that_differ_are_brought_together_and_arrows_never_point_backwards():
    ahead = [0.0, 5.0, -3.0]

    def work(transport: Transport) -> list[list[Span]]:
        own = ahead[transport.rank]
        clock = transport.now
        transport.now = lambda: clock() + own
        offset = clock_offset(transport)
        assert offset == pytest.approx(-own)
        trace = transport.trace = Trace(transport.now)
        transport.barrier()
        transport.trace = None
        return gather(transport, trace, offset)

    spans = Cluster(3).run(work)[0]
    check_events(spans)
    assert np.ptp([span.begin for theirs in spans for span in theirs]) < 1e-9
    late = [[Span(SEND, 1.0, 1.5, track="sends", peer=1)], [Span(RECEIVE, 0.5, 0.9, track="receives", peer=0)]]
    assert sum(event["ph"] == "f" for event in check_events(late)) == 1


def test_nothing_is_recorded_or_wrapped_without_a_trace():
    requests: list[Request] = []

    def work(transport: Transport) -> int:
        arriving = transport.irecv(np.empty(1), (transport.rank - 1) % 2)
        requests.extend([arriving, transport.isend(np.ones(1), (transport.rank + 1) % 2)])
        with transport.span(COMPUTE):
            arriving.wait()
        requests[-1].wait()
        return transport.messages_sent

    assert Cluster(2).run(work) == [1, 1]
    assert {type(request).__module__ for request in requests} == {"bigbatch.comm.transports.simulated.messages"}


def test_too_many_spans_are_left_out(monkeypatch):
    monkeypatch.setattr("bigbatch.comm.wires.recording.MOST_SPANS", 3)
    (spans,) = traced(1, lambda transport: [transport.add(np.ones(2), np.ones(2)) for _ in range(5)])
    assert len(spans) == 3


def test_lanes_are_as_few_as_can_be():
    pieces = [Span("x", *ends) for ends in ((0, 4), (1, 2), (2, 3), (3, 6), (5, 7), (6, 8))]
    nested = lanes(pieces, nested=True)
    assert [[(p.begin, p.end) for p in lane] for lane in nested] == [
        [(0, 4), (1, 2), (2, 3), (5, 7)],
        [(3, 6), (6, 8)],
    ]
    assert len(lanes(pieces[:3], nested=False)) == 2


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_trace(tmp_path / "trace.json", traced(4, ring_after_computing))
    return tmp_path


def test_a_trace_is_read_back_as_it_was(written):
    ranks = traced(4, ring_after_computing)
    back = read_trace(written / "trace.json")
    for spans, theirs in zip(ranks, back, strict=True):
        for span, again in zip(sorted(spans, key=repr), sorted(theirs, key=repr), strict=True):
            assert (span.begin, span.end) == pytest.approx((again.begin, again.end), abs=2e-9)
            assert repr(span).split("end=")[1].split(",", 1)[1] == repr(again).split("end=")[1].split(",", 1)[1]


def test_the_updates_that_were_asked_for_are_found(tmp_path):
    ends = [0.0, 0.0186219, 0.0297600017]
    updates = [Span(UPDATE, *ends[n - 1 : n + 1], track="updates", number=n) for n in (1, 2)]
    write_trace(tmp_path / "trace.json", [[Span("arm", ends[0], ends[-1], "large", "updates"), *updates]])
    ranks = read_trace(tmp_path / "trace.json")
    assert range_of_updates(ranks) == pytest.approx(tuple(ends[1:]), abs=1e-9)
    assert range_of_updates(ranks, "large", (1, 1)) == pytest.approx(tuple(ends[:2]), abs=1e-9)


def test_every_part_of_a_trace_is_drawn(written, tmp_path):
    draw_timeline(read_trace(written / "trace.json"), tmp_path / "own.png", "a ring", 1.0)
    assert (tmp_path / "own.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigurationError, match="up to 64 can be drawn"):
        draw_timeline([[]] * 65, tmp_path / "own.png", "too many")


BAD = {
    "no run": (["none"], "There is no run none"),
    "no trace": (["empty"], "There is no trace.json in empty: run again with --trace"),
    "no JSON": (["broken"], "The trace broken/trace.json is damaged: it is not JSON"),
    "other JSON": (["other"], "The trace other/trace.json is damaged: it is a list, and should be an object"),
    "empty range": (["run", "--from", "100"], "Nothing was recorded from 100 s"),
    "reversed range": (["run", "--from", "3", "--to", "2"], "Choose another range"),
    "no updates": (["run"], "choose a range of time with --from and --to"),
    "two ranges": (["run", "--from", "3", "--updates", "2"], "use one"),
    "no such update": (
        ["trained", "--updates", "7..8"],
        "has the updates 1 to 1 of the arm large, but --updates asks for 7..8",
    ),
    "a figure of another kind": (["run", "--to", "3", "--out", "a.pdf"], "Name a file that ends in .png"),
    "no such arm": (["trained", "--arm", "huge"], "has no arm 'huge'. It has: large"),
    "a folder for a figure": (
        ["run", "--to", "3", "--out", "empty"],
        "The file empty cannot be written: it is no file",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_drawn_is_told_why(monkeypatch, written, name):
    monkeypatch.chdir(written)
    for folder, content in (
        ("empty", None),
        ("broken", '{"traceEvents": [{'),
        ("other", '[{"ph": "X"}]'),
        ("run", (written / "trace.json").read_text()),
    ):
        (written / folder).mkdir()
        if content is not None:
            (written / folder / "trace.json").write_text(content)
    (written / "trained").mkdir()
    arm = [Span("arm", 0.0, 1.0, "large", "updates"), Span(UPDATE, 0.0, 1.0, track="updates", number=1)]
    write_trace(written / "trained" / "trace.json", [arm])
    arguments, sentence = BAD[name]
    outcome = CliRunner().invoke(cli, ["timeline", *arguments])
    assert isinstance(outcome.exception, ConfigurationError)
    assert sentence in str(outcome.exception)


@pytest.mark.slow
def test_a_real_run_writes_a_trace_that_timeline_draws(run: Run, tmp_path):
    outcome = run("mpirun", "-n", "2", "bigbatch-exp", "ring", *SMALL, "--trace", "--trace-updates", "3",
                  "--bucket-size", "4KB", "--quiet", "--out", "here")  # fmt: skip
    assert outcome.status == 0, outcome.err
    path = tmp_path / "here" / "trace.json"
    assert json.loads(path.read_text())["displayTimeUnit"] == "ms"
    ranks = read_trace(path)
    check_events(ranks)
    for rank, spans in enumerate(ranks):
        assert [span.name for span in spans if span.kind == "arm"] == ["large", "accumulated", "small"]
        assert [span.number for span in spans if span.kind == UPDATE] == [1, 2, 1, 2, 1, 2, 3]
        assert {span.name for span in spans if span.kind == COMPUTE} == {"forward", "backward", "apply"}
        assert {"work", "communication", "sends", "receives", "updates"} == {span.track for span in spans}
        sent = {span.message(rank) for span in spans if span.kind == SEND}
        received = {span.message(1 - rank) for span in ranks[1 - rank] if span.kind == RECEIVE}
        assert sent == received
    drawn = CliRunner().invoke(cli, ["timeline", str(tmp_path / "here"), "--arm", "small", "--updates", "2..3"])
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "here" / "timeline.png").read_bytes().startswith(b"\x89PNG")
