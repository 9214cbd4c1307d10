"""Plans of a training against dominance by brute force, times by hand, and every combination simulated by itself."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from jobs import Run

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.simulation.computing import Computing, Stragglers
from bigbatch.comm.simulation.gpus import gpu_named
from bigbatch.comm.simulation.network import Network, wire
from bigbatch.comm.simulation.presets import network_named
from bigbatch.experiments.commands.main import cli
from bigbatch.experiments.planning.needs import Measured, fitting, known_from, memory_bytes
from bigbatch.experiments.planning.plan import (
    MARGIN,
    Candidate,
    Deployment,
    advice,
    candidates,
    composed,
    duration,
    exact_front,
    front_of,
    ideal,
    planned,
    recommended,
    simulated,
)
from bigbatch.experiments.planning.plans import planned_for
from bigbatch.experiments.planning.settings import PlanRequest
from bigbatch.experiments.planning.simulate import simulate_row
from bigbatch.experiments.planning.tradeoff import Tradeoff, kaplan
from bigbatch.models.sizes import model_named, own_size, recomputing_blocks

SIZE = own_size(vocabulary=503, context=40, layers=3, width=64)
SMALL = Deployment(SIZE, network_named("ethernet-1g"), Computing(5e-5), bucket_bytes=150_000, overlap=True)
TRADEOFF = Tradeoff(least_updates=700.0, critical_batch=3_000.0)


def at(seconds, gpu_hours, **others):
    one = Candidate("ring", 4, 0, 1, 1, 4096, 10.0, 1.0, 0.5, seconds, gpu_hours, simulated=True)
    return replace(one, **others)


def test_the_front_is_what_no_other_beats():
    generator = np.random.default_rng(5)
    for _ in range(50):
        points = generator.integers(1, 12, (30, 2)).astype(float).tolist()
        unbeaten = {
            (time, cost)
            for time, cost in points
            if not any(t <= time and c <= cost and (t, c) != (time, cost) for t, c in points)
        }
        front = front_of([at(*point) for point in points])
        assert [(one.seconds, one.gpu_hours) for one in front] == sorted(unbeaten)


def test_what_is_recommended_is_the_fastest_at_twice_the_least_cost():
    front = [at(1.0, 90.0, workers=64), at(5.0, 20.0), at(6.0, 11.0), at(9.0, 10.0, workers=2)]
    assert recommended(front) is front[1]
    for some in (front, front[1:], front[3:]):
        sentences = re.findall(r"[^ ].*?\.(?= |$)", advice(some))
        assert len(sentences) == 2, sentences
    said = advice(front)
    assert "Take 4 workers with ring and 1 × 1 sequences each: 5 s and 20 GPU-hours" in said
    assert "1.8 times as fast as the cheapest, 2 workers with ring" in said
    assert "5 times as fast, at 4.5 times the cost, with 64 workers with ring" in said


def test_durations_are_in_the_unit_that_tells_them():
    said = [duration(seconds) for seconds in (0.5, 89, 91, 5_399, 5_401, 71 * 3600, 73 * 3600, 5e8)]
    assert said == ["0.5 s", "89 s", "1.52 min", "90 min", "1.5 h", "71 h", "3.04 days", "5,787 days"]


def test_time_and_cost_of_a_row_by_hand():
    alpha, beta, gamma = 3e-5, 1 / 2e8, 1 / 9e9
    workers, micro_batch, accumulation = 4, 3, 5
    network = Network("plain", wire(alpha, 1 / beta), gamma)
    cluster = Deployment(SIZE, network, Computing(2e-5), bucket_bytes=1 << 30, overlap=False)
    (row,) = candidates(cluster, TRADEOFF, ["ring"], [workers], [1], [micro_batch], [accumulation])
    tokens = micro_batch * accumulation * 40
    n = 4 * SIZE.parameters
    around = 2 * (workers - 1) * (alpha + n / workers * beta) + (workers - 1) * n / workers * gamma
    tally = 2 * (alpha + 16 * (beta + gamma))
    step = tokens * 2e-5 + tally + around
    updates = 700 * (1 + 3_000 / (workers * tokens))
    for one in (row, simulated(cluster, TRADEOFF, row)):
        assert one.batch == workers * tokens
        assert one.updates == pytest.approx(updates)
        assert one.step_seconds == pytest.approx(step, rel=1e-4)
        assert one.efficiency == pytest.approx(tokens * 2e-5 / step, rel=1e-4)
        assert one.seconds == pytest.approx(updates * step, rel=1e-4)
        assert one.gpu_hours == pytest.approx(updates * step * workers / 3600, rel=1e-4)


def test_servers_are_paid_for():
    (row,) = candidates(SMALL, TRADEOFF, ["ps"], [3], [2], [2], [1])
    assert (row.workers, row.servers, row.ranks) == (3, 2, 5)
    assert row.gpu_hours == pytest.approx(row.seconds * 5 / 3600)
    rows = candidates(SMALL, TRADEOFF, ["ring", "ps"], [3], [1, 2], [2], [1])
    assert [(one.strategy, one.servers) for one in rows] == [("ring", 0), ("ps", 1), ("ps", 2)]


WAYS = [(1, 1), (2, 3), (9, 1), (9, 4)]


@pytest.mark.parametrize("network", ["ethernet-1g", "infiniband-hdr", "dgx-h100"])
@pytest.mark.parametrize("workers", [1, 3, 8, 12])
@pytest.mark.parametrize("name", ["ring", "halving-doubling", "direct", "tree"])
def test_an_update_composed_of_its_parts_takes_what_it_takes_simulated(name, workers, network):
    cluster = replace(SMALL, network=network_named(network))
    loads = [cluster.workload(*way) for way in WAYS]
    times = composed(name, cluster.network, workers, loads)
    for load, seconds in zip(loads, times, strict=True):
        exact = simulate_row(name, cluster.network, workers, load, Stragglers()).step_seconds
        assert exact * 0.88 <= seconds <= exact * (1 + MARGIN)  # who seems too fast is simulated, and found out
        if workers in {1, 8} and name != "tree" and cluster.network.node_size == 1:  # all are through together
            assert seconds == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("workers", [1, 5])
def test_what_is_composed_of_a_server_is_never_above_what_is_simulated(workers):
    loads = [SMALL.workload(*way) for way in WAYS]
    times = composed("ps", SMALL.network, workers, loads, servers=2)
    exact = [simulate_row("ps", SMALL.network, workers, load, Stragglers(), servers=2).step_seconds for load in loads]
    for seconds, (micro_batch, _), known in zip(times, WAYS, exact, strict=True):
        assert seconds <= known * (1 + 1e-9)
        if micro_batch == 9:
            assert seconds == pytest.approx(known, rel=1e-9)


def test_the_front_is_that_of_every_combination_simulated():
    found = candidates(SMALL, TRADEOFF, ["ring", "halving-doubling", "ps"], [1, 3, 6], [1, 3], [1, 2, 4], [1, 4])
    assert len(found) == (1 + 1 + 2) * 3 * 6
    front, everyone = exact_front(SMALL, TRADEOFF, found)
    assert all(one.simulated for one in front)
    assert front == front_of(everyone)
    by_force = front_of([simulated(SMALL, TRADEOFF, one) for one in found])
    assert [(one.seconds, one.gpu_hours) for one in front] == [(one.seconds, one.gpu_hours) for one in by_force]
    assert sum(one.simulated for one in everyone) < len(everyone) / 2


def test_more_bandwidth_never_makes_the_best_time_worse():
    best = []
    for bandwidth in (1e7, 1e8, 3e8, 1e9, 1e11):
        cluster = replace(SMALL, network=Network("wider", wire(2e-5, bandwidth), 1e-11))
        found = candidates(cluster, TRADEOFF, ["ring", "halving-doubling"], [2, 4, 6], [1], [1, 4], [1, 3])
        best.append(exact_front(cluster, TRADEOFF, found)[0][0].seconds)
    assert best == sorted(best, reverse=True)
    assert best[0] > best[-1]


def test_the_ideal_is_the_time_of_a_worker_for_each_micro_batch():
    hours, seconds_per_token, context = [], SMALL.computing.seconds_per_token, SIZE.context
    expected = []
    for workers in (2, 30, 400):
        updates = TRADEOFF.updates(workers * 3 * context)
        expected.append(updates * 3 * context * seconds_per_token)
        hours.append(workers * expected[-1] / 3600)
    assert ideal(TRADEOFF, SMALL, 3, np.array(hours)) == pytest.approx(expected)
    assert np.isinf(ideal(TRADEOFF, SMALL, 3, np.array([TRADEOFF.least_tokens * seconds_per_token / 3601]))).all()


def test_memory_by_hand():
    size = model_named("gpt2-small")
    activations = 12 * 1024 * 768 * 34 + 4 * 1024 * (768 + 50257)
    assert memory_bytes(size, 3, "bf16") == memory_bytes(size, 3, "fp16") == 16 * 124_439_808 + 3 * activations
    whole = 12 * 1024 * 768 * (2 * 32 + 2) + 1024 * (2 * 4 * 768 + 4 * 50257)  # twice all but masks and logits
    assert memory_bytes(size, 3, "fp32") == 16 * 124_439_808 + 3 * whole
    again = 1024 * 768 * (12 * 2 + 34) + 4 * 1024 * (768 + 50257)  # the input of each block, and all of one
    assert memory_bytes(recomputing_blocks(size), 3, "bf16") == 16 * 124_439_808 + 3 * again
    t4 = gpu_named("t4")
    most = (t4.memory_bytes - 16 * 124_439_808) // activations
    assert fitting(size, [1, most, most + 1], t4, "fp16") == (1, most)
    assert fitting(size, [1, most, most + 1], t4, "fp32") == (1,)
    assert fitting(size, [1, 10**6], None, "fp32") == (1, 10**6)
    with pytest.raises(ConfigurationError, match=r"llama2-7b does not fit a worker: .* 127 GB, and a100 has 80 GB"):
        fitting(model_named("llama2-7b"), [1, 2], gpu_named("a100"), "bf16")


def test_what_is_given_goes_before_what_was_fitted_and_that_before_what_was_published(tmp_path):
    size = model_named("gpt2-small")
    given = known_from(size, None, 2_000, 31.5, None)
    assert (given.tradeoff, given.target) == (Tradeoff(31.5, 2_000), None)
    published = known_from(size, 3.3, None, None, None)
    assert published.tradeoff == kaplan(size, 3.3)
    assert "Kaplan" in published.source
    fit = {"least_updates": 410.5, "critical_batch": 7_700, "target": 2.5, "untold": None}
    (tmp_path / "summary.json").write_text(json.dumps({"fit": fit}))
    fitted = known_from(size, None, None, None, tmp_path)
    assert (fitted.tradeoff, fitted.target) == (Tradeoff(410.5, 7_700), 2.5)
    assert str(tmp_path) in fitted.source
    (tmp_path / "summary.json").write_text(json.dumps({"fit": {**fit, "untold": "All too small."}}))
    assert "All too small." in known_from(size, 2.5, None, None, tmp_path).source
    with pytest.raises(ConfigurationError, match=r"loss of 2\.5, and --target is 2\.6"):
        known_from(size, 2.6, None, None, tmp_path)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((3.3, 2_000, None, None), "belong together"),
        ((3.3, None, 10.0, None), "belong together"),
        ((3.3, 2_000, 10.0, "here"), "leave one out"),
        ((None, None, None, None), "give a --target loss"),
        ((2.5, None, None, None), "does not get to a loss of 2.5"),
        ((None, None, None, "nowhere"), "has no summary.json that can be read"),
        ((None, None, None, "empty"), "has no fit of least_updates"),
        ((None, None, None, "zero"), "fit.critical_batch is 0, not above 0"),
    ],
)
def test_what_says_nothing_of_the_updates_is_refused(given, words, tmp_path):
    target, critical_batch, least_updates, folder = given
    for name, summary in (("empty", {"rows": []}), ("zero", {"fit": {"least_updates": 1, "critical_batch": 0}})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ConfigurationError, match=words):
        known_from(
            model_named("gpt2-small"), target, critical_batch, least_updates, tmp_path / folder if folder else None
        )


def test_only_updates_of_everybodys_gradients_are_planned():
    assert planned("ps", 2).ranks_for(3) == 5
    for name in ("ps:async", "ps:ssp:2", "ps:backup:1"):
        with pytest.raises(ConfigurationError, match=f"updates of {name} are not of everybody's"):
            planned(name, 1)


def test_plan_writes_the_front_and_its_figure(run: Run, tmp_path):
    (tmp_path / "net.toml").write_text("alpha = 2e-5\nbandwidth = 3e9\n")
    options = ("--workers", "2..4", "--strategies", "ring,ps", "--servers", 2, "--network", "net.toml", "--gpu", "t4")
    ways = ("--micro-batch", "8..64", "--accumulate", "1,3", "--price", 1.25, "--target", 3.5)
    outcome = run("bigbatch-exp", "plan", *options, *ways, "--out", "here")
    assert outcome.status == 0, outcome.err
    assert {file.name for file in (tmp_path / "here").iterdir()} == {"summary.json", "front.png"}
    summary = json.loads((tmp_path / "here" / "summary.json").read_text())
    known = kaplan(model_named("gpt2-small"), 3.5)
    assert summary["updates"]["critical_batch"] == pytest.approx(known.critical_batch)
    assert f"At least {known.least_updates:,.0f} updates" in outcome.out
    assert "Too many sequences at once for the memory of t4, and left out: 32, 64." in outcome.out
    assert len(summary["candidates"]) == 2 * 2 * 2 * 2
    assert summary["advice"] in outcome.out
    for row in summary["front"]:
        assert row["simulated"]
        tokens = row["batch"] // row["workers"]
        assert tokens == row["micro_batch"] * row["accumulation"] * 1024
        assert row["step_seconds"] >= tokens * model_named("gpt2-small").flops_per_token / (65e12 * 0.4)
        assert math.isclose(row["seconds"], row["updates"] * row["step_seconds"])
        assert f"{1.25 * row['gpu_hours']:,.2f}" in outcome.out
    assert summary["recommended"] in summary["front"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "2.5"], "does not get to a loss of 2.5"),
        (["--target", "3.3", "--model", "gpt3-175b"], "gpt3-175b does not fit a worker"),
        (["--target", "3.3", "--model", "gpt2-smal"], "did you mean 'gpt2-small'"),
        (["--target", "3.3", "--network", "ethernet-10"], "did you mean 'ethernet-10g'"),
        (["--target", "3.3", "--gpu", "a1000"], "did you mean 'a100'"),
        (["--target", "3.3", "--strategies", "ring,rong"], "rong"),
        (["--target", "3.3", "--strategies", "allreduce"], "allreduce sends no messages of ours"),
        (["--target", "3.3", "--workers", "0..8"], "'0..8', which is no number of workers"),
        (["--target", "3.3", "--micro-batch", "0"], "'0', which is no number of sequences"),
        (["--target", "3.3", "--accumulate", "9999999"], "'9999999', which is no number of micro-batches"),
        (["--critical-batch", "0", "--least-updates", "5"], "'0' is out of range; it must be at least 1"),
        (["--target", "0"], "Invalid value for '--target'"),
    ],
)
def test_what_cannot_be_planned_is_refused(options, words):
    outcome = CliRunner().invoke(cli, ["plan", *options])
    assert outcome.exit_code
    assert words in f"{outcome.exception} {outcome.output}"


def test_the_last_of_many_combinations_is_refused_before_the_first_is_simulated():
    request = PlanRequest.of({"target": 3.2, "workers": 2, "servers": "1..1048576", "strategies": "ring,ps"})
    told: list[str] = []
    with pytest.raises(ConfigurationError, match="workers and servers together cannot be 1048578"):
        planned_for(request, told.append)
    assert told == []


def test_a_fit_is_planned_with_for_the_model_that_was_measured(tmp_path):
    sizes = {"vocabulary": 257, "context": 32, "layers": 2, "width": 64}
    fit = {"least_updates": 40.0, "critical_batch": 900.0, "target": 2.3, "model": sizes}
    (tmp_path / "summary.json").write_text(json.dumps({"fit": fit}))
    measured = Measured.read(tmp_path)
    assert measured.size == own_size(257, 32, 2, 64)
    assert "another model" not in known_from(measured.size, None, None, None, tmp_path).source
    assert "gpt2-small takes as many" in known_from(model_named("gpt2-small"), None, None, None, tmp_path).source
