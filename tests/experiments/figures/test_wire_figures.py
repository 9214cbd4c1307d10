"""Figures of scaling and of the crossover: their cells against closed formulas, and what they make of made-up ones."""

import math

import numpy as np
import pytest

from bigbatch.comm.schedules.schedule import chunk_bounds, chunk_count
from bigbatch.comm.simulation.formulas import asynchronous_seconds
from bigbatch.comm.simulation.network import Network, wire
from bigbatch.comm.simulation.presets import network_named
from bigbatch.comm.simulation.replay import replay
from bigbatch.comm.simulation.server_rounds import synchronous_server
from bigbatch.experiments.claims import crossover, scaling
from bigbatch.experiments.laboratory.claim import Verdict
from bigbatch.experiments.planning import server_against_ring

ALPHA, BETA, GAMMA = 7e-6, 1 / 3e9, 1 / 11e9
NETWORK = Network("made up", wire(ALPHA, 1 / BETA), GAMMA)


# Servers that answer segment by segment.


@pytest.mark.parametrize(("workers", "servers", "segments"), [(5, 3, 4), (4, 4, 1), (2, 5, 3)])
def test_segments_bring_every_worker_the_sum(workers, servers, segments):
    elements = 103
    rounds = list(synchronous_server(workers + servers, servers, segments))
    bounds = chunk_bounds(elements, chunk_count(rounds))
    gradients = np.random.default_rng(1).integers(-9, 9, (workers, elements))
    held = np.concatenate([gradients, np.zeros((servers, elements), np.int64)])
    for one in rounds:
        before = held.copy()
        for source, target, first, stop, reduce in zip(
            one.source, one.target, one.first, one.stop, one.reduce, strict=True
        ):
            part = slice(bounds[first], bounds[stop])
            held[target, part] = held[target, part] + before[source, part] if reduce else before[source, part]
    assert (held[:workers] == gradients.sum(axis=0)).all()


@pytest.mark.parametrize(("workers", "servers", "segments"), [(4, 4, 2), (6, 2, 5), (8, 8, 16), (6, 1, 3)])
def test_segments_use_both_directions_of_a_port(workers, servers, segments):
    n = 4_800_000

    def rounds(size):
        return synchronous_server(size, servers, segments)

    seconds = replay(rounds, NETWORK, workers + servers, n, itemsize=1).max()
    moving = n * BETA * max(1, workers / servers)
    assert moving * (1 + 1 / segments) < seconds
    assert seconds <= (segments + 1) * (ALPHA + moving / segments) + n / servers * GAMMA


# Scaling.


def scaling_row(way, workers, rates, share, network="made up"):
    kind = scaling.WAYS[way]
    return {
        "network": network,
        "way": way,
        "workers": workers,
        "bounded": kind.bounded,
        "stops": kind.stops,
        "tokens_per_second": rates,
        "added": 0.3 * share,
        "bound": 0.3,
    }


def scaling_rows(**changed):
    """Of 2 to 16 workers; throughput and what is added are as the claim has them, but for what is changed."""
    rows = []
    for way, kind in scaling.WAYS.items():
        for workers in (2, 4, 8, 16):
            grown = 1 if kind.stops else workers
            rates = [grown * seed for seed in (1000.0, 1100.0, 1300.0)]
            rows.append(scaling_row(way, workers, rates, workers if kind.stops else 1 - 1 / workers))
    for row in rows:
        if (row["way"], row["workers"]) == ("ring", 16):
            row.update(changed)
    return rows


def test_exponents_are_slopes_over_the_last_factor_of_four():
    assert scaling.exponent(3.0, 3.0 * 4**0.4, 4) == pytest.approx(0.4)
    found = {own["way"]: own for own in scaling.exponents(scaling_rows())}
    assert found["ring"]["workers"] == [4, 16]
    assert found["ring"]["throughput"] == pytest.approx([1, 1, 1])
    assert found["ring"]["share"] == pytest.approx(15 / 16)
    assert found["ps, 1 server"]["throughput"] == pytest.approx([0, 0, 0])
    assert found["ps, 1 server"]["added"] == pytest.approx(1)


def test_scaling_is_judged_seed_by_seed():
    slow, quick = 4 * 4**0.7, 4 * 4**0.8
    assert scaling.judged(scaling_rows())[0] is Verdict.HELD
    verdict, sentence = scaling.judged(scaling_rows(tokens_per_second=[slow * seed for seed in (1000, 1100, 1300)]))
    assert verdict is Verdict.FAILED
    assert "Against the claim: throughput over ring on made up." in sentence
    verdict, sentence = scaling.judged(scaling_rows(tokens_per_second=[slow * 1000, slow * 1100, quick * 1300]))
    assert verdict is Verdict.UNTOLD
    assert "Seeds disagree about throughput over ring on made up." in sentence
    verdict, sentence = scaling.judged(scaling_rows(added=0.3 * 1.26))
    assert verdict is Verdict.FAILED
    assert "Against the claim: what ring on made up adds." in sentence


def test_a_server_that_adds_less_than_in_proportion_speaks_against_the_claim():
    rows = scaling_rows()
    for row in rows:
        if row["stops"]:
            row["added"] = 0.3 * row["workers"] ** 0.7
    verdict, sentence = scaling.judged(rows)
    assert verdict is Verdict.FAILED
    assert "what ps, 1 server on made up adds" in sentence


def test_cells_of_scaling_keep_to_the_formulas():
    load, network, workers = scaling.workload(), network_named("ethernet-10g"), 4
    alpha, beta = network.wires.pieces[0].alpha, 8 / 10e9
    n = 4 * load.size.parameters
    ring = scaling.row_of("ring", network, workers, load, 2, 2)
    whole = 2 * (workers - 1) / workers * n * beta
    latency = 2 * len(load.buckets()) * (2 * (workers - 1) + 2 * math.log2(workers)) * alpha
    assert ring["bound"] == pytest.approx(2 * n * beta)
    # What backward hides is not added, and no more than backward takes can be hidden.
    assert whole - load.computing.backward(load.tokens) < ring["added"]
    assert ring["added"] < whole + 0.75 * n * network.gamma + latency
    assert len(set(ring["tokens_per_second"])) == 2
    server = scaling.row_of("ps, 1 server", network, workers, load, 2, 2)
    # Everyone's gradients pass the server's port, one after the other.
    assert all(rate < load.tokens / (n * beta) for rate in server["tokens_per_second"])
    many = scaling.row_of("ps, W servers", network, workers, load, 1, 2)
    assert many["added"] < server["added"]


# The crossover.


def test_synchronous_cells_are_what_the_formulas_say():
    p, n = 8, 1 << 19  # no message is so long that its adding is cut into packets
    ring = 2 * (p - 1) * ALPHA + 2 * (p - 1) / p * n * BETA + (p - 1) / p * n * GAMMA
    servers = {"1 server": 1, "W/4 servers": 2, "W servers": 8}
    cells = {one["servers"]: one for one in server_against_ring.size_cells(NETWORK, p, [n])}
    for name, count in servers.items():
        seconds = 2 * ALPHA + 2 * n * BETA * p / count + n / count * GAMMA
        assert cells[name]["predicted"] == pytest.approx([seconds / ring] * 2, rel=1e-12)
        assert cells[name]["ratios"] == pytest.approx([seconds / ring], rel=1e-9)
    overlapped = cells["W servers, overlapped"]
    assert overlapped["ratios"] == pytest.approx(overlapped["predicted"][:1], rel=0.02)
    (large,) = (
        one
        for one in server_against_ring.size_cells(NETWORK, p, [1 << 28])
        if one["servers"] == server_against_ring.OVERLAPPED
    )
    assert large["ratios"][0] == pytest.approx(8 / 7 / 2 * (1 + 1 / server_against_ring.SEGMENTS), rel=0.05)


def test_a_map_has_the_ports_bandwidth_and_nothing_else_of_the_network_changed():
    p, n, bandwidths = 4, server_against_ring.MAP_BYTES, [1e9, 5e10]
    cells = server_against_ring.map_cells(NETWORK, [2 * p, p], bandwidths)
    assert [(one["servers"], one["value"], one["workers"]) for one in cells[:4]] == [
        ("1 server", bandwidth, workers) for bandwidth in bandwidths for workers in (2 * p, p)
    ]
    last = cells[-1]
    ring = 2 * (p - 1) * ALPHA + 2 * (p - 1) / p * n / 5e10 + (p - 1) / p * n * GAMMA
    assert last["predicted"][0] == pytest.approx((2 * ALPHA + 2 * n / 5e10 + n / p * GAMMA) / ring, rel=1e-12)


def test_without_stragglers_a_ring_makes_as_many_gradients_as_its_formula_says():
    load, workers = server_against_ring.workload(), 4
    n, network = 4 * load.size.parameters, network_named("infiniband-hdr")
    alpha, beta = network.wires.pieces[0].alpha, 8 / 200e9
    cells = server_against_ring.straggler_cells(network, workers, 0.0, seeds=3, updates=2)
    step = load.compute + 2 * 3 * alpha + 2 * 0.75 * n * beta
    for one in cells:
        (ring,) = one["ring_gradients_per_second"]
        # Part of the adding is behind messages; the numbers of tokens take a few latencies.
        assert workers / (step + 0.75 * n * network.gamma + 4 * alpha) < ring < workers / step
        # A port of a server lets through a gradient's part at a time; a worker computes, sends and receives.
        servers = {"1 server": 1, "W/4 servers": 1, "W servers": 4}[one["servers"]]
        (rate,) = one["gradients_per_second"]
        assert rate < min(servers / (n * beta), workers / (load.compute + 2 * n * beta)) * (1 + 1e-9)
        assert one["ratios"] == pytest.approx([ring / rate])


def test_bounds_of_an_asynchronous_server_meet_where_nobody_can_meet():
    for servers in (1, 3):
        least, most = asynchronous_seconds(NETWORK, 1, 6e6, servers, 0.05, 0.02)
        alone = 0.07 + 2 * ALPHA + 2 * 6e6 * BETA + 6e6 / servers * GAMMA
        assert least == pytest.approx(alone) == pytest.approx(most)
    least, most = asynchronous_seconds(NETWORK, 40, 6e6, 1, 0.05, 0.02)
    assert least == pytest.approx(6e6 * (BETA + GAMMA))
    assert most == pytest.approx((0.07 + 2 * ALPHA) / 40 + 6e6 * (2 * BETA + GAMMA))


def made_up(**ratios):
    """Cells that agree with the claim; `ratios` replaces those of servers of a kind, as varied_servers=ratios."""
    said = {
        "map_one": (server_against_ring.MAP, server_against_ring.ONE, 1.0, (9, 9), [8.0]),
        "map_many": (server_against_ring.MAP, server_against_ring.MANY, 1.0, (0.8, 0.8), [0.85]),
        "small_many": (server_against_ring.SIZE, server_against_ring.MANY, 1024, (0.2, 0.2), [0.3]),
        "large_many": (server_against_ring.SIZE, server_against_ring.MANY, 1 << 30, (1.05, 1.05), [0.99]),
        "large_overlapped": (server_against_ring.SIZE, server_against_ring.OVERLAPPED, 1 << 30, (0.6, 0.6), [0.6]),
        "short_many": (server_against_ring.STRAGGLERS, server_against_ring.MANY, 0.0, (0.95, 1.3), [1.1, 0.97]),
        "long_many": (server_against_ring.STRAGGLERS, server_against_ring.MANY, 1.0, (0.6, 0.88), [0.7, 0.8]),
    }
    return [
        server_against_ring.cell(varied, servers, 8, value, predicted, ratios.get(name, own))
        for name, (varied, servers, value, predicted, own) in said.items()
    ]


def test_the_crossover_is_judged_where_formulas_set_the_two_apart():
    assert [crossover.set_apart(one) for one in made_up()] == [1, -1, -1, 0, -1, 0, -1]
    verdict, sentence = crossover.judged(made_up())
    assert verdict is Verdict.HELD
    assert "In 5 of 7 cells" in sentence
    # A bound on each side, and formulas closer than the margin, decide nothing.
    assert crossover.judged(made_up(short_many=[3.0, 0.2], large_many=[5.0]))[0] is Verdict.HELD
    verdict, sentence = crossover.judged(made_up(small_many=[1.2]))
    assert verdict is Verdict.FAILED
    assert "W servers for 8 workers at 1,024 bytes (1.2 times the ring's, not 0.2)" in sentence
    verdict, sentence = crossover.judged(made_up(long_many=[0.7, 1.2]))
    assert verdict is Verdict.UNTOLD
    assert "Seeds disagree" in sentence
    assert crossover.judged(made_up(long_many=[1.1, 1.2]))[0] is Verdict.FAILED
    assert crossover.judged([made_up()[3]])[0] is Verdict.UNTOLD


def test_what_is_claimed_counts_even_where_formulas_say_otherwise():
    cells = made_up(map_one=[0.9])
    cells[0]["predicted"] = [0.8, 0.8]
    verdict, sentence = crossover.judged(cells)
    assert verdict is Verdict.FAILED
    assert "Not so: 1 server is behind in its map." in sentence


def test_the_table_counts_cells():
    rows = {(row["varied"], row["servers"]): row for row in crossover.counted(made_up())}
    many = rows[server_against_ring.STRAGGLERS, server_against_ring.MANY]
    assert (many["cells"], many["apart"], many["ahead"], many["agree"]) == (2, 1, 1, 1)
    assert (many["least"], many["most"]) == (0.7, 1.1)
    assert many["off"] == 0
    assert rows[server_against_ring.MAP, server_against_ring.ONE]["off"] == pytest.approx(12.5)
