"""What `simulate` and `plan` make of a precision and of a wire's, against closed formulas and ratios of datasheets."""

import json
from dataclasses import replace

import own_strategies
import pytest
from click.testing import CliRunner

import bigbatch
from bigbatch.comm.collectives import ALGORITHMS
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.simulation.computing import Computing, Stragglers
from bigbatch.comm.simulation.network import Network, wire
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.experiments.commands import simulate as commands
from bigbatch.experiments.commands.main import cli
from bigbatch.experiments.planning.plan import Deployment, candidates, simulated
from bigbatch.experiments.planning.plans import planned_for
from bigbatch.experiments.planning.settings import PlanRequest
from bigbatch.experiments.planning.simulate import bare_row, simulate_row
from bigbatch.experiments.planning.timing import on_cluster
from bigbatch.experiments.planning.tradeoff import Tradeoff
from bigbatch.experiments.planning.workload import Workload
from bigbatch.experiments.training.settings import Settings
from bigbatch.experiments.training.simulated import Simulation, computing_on, precision_on, simulation_of
from bigbatch.models.sizes import model_named, model_of

ALPHA, BETA, GAMMA = 5e-6, 1e-9, 1e-10
PLAIN = Network("plain", wire(ALPHA, 1 / BETA), GAMMA)
SENDERS = [*ALGORITHMS.names(), "ps", "ps:async", f"{own_strategies.__file__}:OwnServers"]


def load(parameters, sent, *, computing=0.0, bucket_bytes=1 << 40, layers=1):
    return Workload(
        model_of(parameters, 6.0, layers=layers), 1000, Computing(computing), bucket_bytes, overlap=False, wire=sent
    )


def bare(strategy, workers, nbytes, sent="fp32", **options):
    (row,) = bigbatch.simulate(strategy, workers=workers, bytes=nbytes, wire=sent, network="net.toml", **options)
    return row["communication_seconds"]


@pytest.fixture
def plain_network(tmp_path, monkeypatch):
    (tmp_path / "net.toml").write_text(f"alpha = {ALPHA}\nbandwidth = {1 / BETA}\ngamma = {GAMMA}\n")
    monkeypatch.chdir(tmp_path)


# The closed formulas of a ring (Patarasuk and Yuan 2009), of halving-doubling (Rabenseifner 2004) and of a synchronous
# server, p = 8 workers, S = 2 servers, n bytes of float32.
FORMULAS = {
    "ring": lambda n: 14 * ALPHA + 7 / 8 * n * (2 * BETA + GAMMA),
    "halving-doubling": lambda n: 6 * ALPHA + 7 / 8 * n * (2 * BETA + GAMMA),
    "ps": lambda n: 2 * ALPHA + 2 * n * BETA * 4 + n / 2 * GAMMA,
}


# In half precision: half the bytes, and γ for every byte of float32 that is rounded, and widened or added. A ring and
# halving-doubling do both to all that they send; of a server's work, all is hidden behind its ports but what the first
# message waits for and what the last one leaves to do, at both ends, each way.
HALVED = {
    "ring": lambda n: 14 * ALPHA + 7 / 8 * n * (BETA + 4 * GAMMA),
    "halving-doubling": lambda n: 6 * ALPHA + 7 / 8 * n * (BETA + 4 * GAMMA),
    "ps": lambda n: 2 * ALPHA + n * BETA * 4 + 4 * n / 2 * GAMMA,
}


@pytest.mark.usefixtures("plain_network")
@pytest.mark.parametrize("name", FORMULAS)
def test_a_sum_in_half_precision_takes_what_the_formula_says(name):
    n = 4 * 8 * 1000
    whole, *halves = (bare(name, 8, n, sent, servers=2) for sent in ("fp32", "bf16", "fp16"))
    assert whole == pytest.approx(FORMULAS[name](n), rel=1e-9)
    assert halves == [pytest.approx(HALVED[name](n), rel=1e-9)] * 2


def test_half_the_bytes_gain_next_to_nothing_where_a_message_is_a_copy_in_memory():
    """As docs/explanation/wires.md has measured it: 16 MB are copied in 2.8 ms, and added in 1 ms, by either core."""
    n = 32 * 2**20
    machine = Network("a machine", wire(1e-5, n / 2 / 2.8e-3), gamma=1e-3 / (n / 2))
    whole, half = (bare_row("ring", machine, 2, n, wire=sent)["communication_seconds"] for sent in ("fp32", "bf16"))
    assert 0.8 < half / whole < 1.5


@pytest.mark.usefixtures("plain_network")
def test_latency_does_not_shrink():
    whole, half = (bare("ring", 8, 8, sent) for sent in ("fp32", "bf16"))
    assert whole == pytest.approx(half, rel=1e-3)
    assert bare("ring", 8, 1_000_003) == pytest.approx(FORMULAS["ring"](1_000_003), rel=1e-4), "no whole numbers"


@pytest.mark.parametrize("sent", ["bf16", "fp16"])
@pytest.mark.parametrize("name", SENDERS, ids=lambda name: name.rpartition(":")[2] if "/" in name else name)
def test_everything_that_is_sent_is_half_as_large_servers_replies_too(name, sent):
    """All but the few numbers beside the gradients: tokens, losses, requests, reports."""
    parameters = 4_000_000
    whole, half = (
        simulate_row(name, replace(PLAIN, gamma=0.0), 4, load(parameters, given), Stragglers(), servers=2, updates=2)
        for given in ("fp32", sent)
    )
    assert whole.busiest_port_bytes == pytest.approx(2 * half.busiest_port_bytes, rel=1e-4)
    assert whole.step_seconds == pytest.approx(2 * half.step_seconds, rel=0.02)


def test_an_update_through_a_server_by_hand():
    """Gradients in, values out, 4 workers' of each through one port, in half the bytes both ways.

    All gradients are sent before the first request is heard, so that adding hides behind none of them. In half
    precision workers round before they send and widen what they read, and the server rounds once for all.
    """
    parameters, workers = 3_000_000, 4
    for sent, number, passes in (("fp32", 4, workers), ("fp16", 2, 1 + workers + 1 + 1)):
        took = on_cluster(STRATEGIES.load("ps"), PLAIN, workers, load(parameters, sent), Stragglers(), 1, 0).longest
        moving = 2 * workers * number * parameters * BETA
        assert took == pytest.approx(moving + passes * 4 * parameters * GAMMA, rel=1e-3)


@pytest.mark.parametrize("name", ["ring", "halving-doubling", "tree"])
def test_replayed_updates_in_half_precision_are_those_on_a_cluster(name):
    given = load(600_011, "bf16", computing=4e-6, bucket_bytes=(1 << 19) + 1, layers=5)
    replayed = simulate_row(name, PLAIN, 6, given, Stragglers())
    made = on_cluster(STRATEGIES.load(name), PLAIN, 6, given, Stragglers(), 2, 0, period=1)
    there = made.row(name, 6, PLAIN, given, made.busiest)
    assert there.step_seconds == pytest.approx(replayed.step_seconds, rel=1e-9)
    assert there.busiest_port_bytes == replayed.busiest_port_bytes


def test_buckets_hold_as_many_gradients_as_in_float32():
    buckets = [load(1_000_000, sent, bucket_bytes=400_001, layers=10).buckets() for sent in ("fp32", "bf16", "fp16")]
    assert buckets == [[200_000] * 5] * 3


def test_a_plan_with_half_the_bytes_by_hand():
    workers, micro_batch, accumulation, seconds = 4, 3, 5, 2e-6
    size = model_of(400_000, 6.0, layers=1)
    size = replace(size, context=40)
    whole = Deployment(size, PLAIN, Computing(seconds), bucket_bytes=1 << 30, overlap=False)
    tradeoff = Tradeoff(700.0, 3000.0)
    tally = 2 * (ALPHA + 16 * (BETA + GAMMA))
    n = 4 * 400_000
    for cluster, moving in ((whole, 2 * BETA + GAMMA), (replace(whole, wire="bf16"), BETA + 4 * GAMMA)):
        (row,) = candidates(cluster, tradeoff, ["ring"], [workers], [1], [micro_batch], [accumulation])
        around = 6 * ALPHA + 3 / 4 * n * moving
        for one in (row, simulated(cluster, tradeoff, row)):
            assert one.step_seconds == pytest.approx(600 * seconds + around + tally, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no-exchange", "sends no gradients"),
        (f"{own_strategies.__file__}:LocalAveraging", "does not say that it can"),
    ],
    ids=["nothing", "own"],
)
def test_who_does_not_send_in_half_precision_is_neither_simulated_nor_planned_in_it(name, words):
    asked = {"workers": 4, "wire": "bf16", "network": "ethernet-10g"}
    with pytest.raises(ConfigurationError, match=words):
        bigbatch.simulate(name, **asked)
    with pytest.raises(ConfigurationError, match=f"{words}|not of everybody"):
        planned_for(PlanRequest.of({**asked, "strategies": name, "target": 3.3}), lambda _: None)
    assert bigbatch.simulate(name, **{**asked, "wire": "fp32"})


# Computing.


@pytest.mark.parametrize(
    ("gpu", "half", "ratio"),
    [
        ("t4", "fp16", 65 / 8.1),
        ("v100", "fp16", 125 / 15.7),
        ("a100", "bf16", 16),
        ("h100", "bf16", 989.4 / 66.9),
        ("rtx-4090", "bf16", 2),
    ],
)
def test_computing_takes_as_much_longer_in_fp32_as_the_peaks_say(gpu, half, ratio):
    seconds = {precision: computing_on(gpu, 1e9, precision=precision).seconds_per_token for precision in ("fp32", half)}
    assert seconds["fp32"] / seconds[half] == pytest.approx(ratio, rel=1e-3)
    assert computing_on(gpu, 1e9).seconds_per_token == seconds[half], "as published models are trained"
    assert precision_on(gpu) == half


def test_a_core_computes_in_fp32_and_nobody_knows_how_fast_in_less():
    assert precision_on("core") == precision_on("core", "fp32") == "fp32"
    assert computing_on("core", 5e10).seconds_per_token == pytest.approx(1)
    with pytest.raises(ConfigurationError, match=r"How fast a core computes in bf16 is not known.*--gpu measured"):
        computing_on("core", 1e9, precision="bf16")


def test_a_training_is_charged_in_the_precision_that_it_computes_in():
    a100, size = {"simulate": 2, "gpu": "a100"}, model_named("gpt2-small")
    plain = simulation_of(Settings.of(a100))
    whole = plain.computing(size.flops_per_token, lambda: 0.0).seconds_per_token
    assert whole == pytest.approx(size.flops_per_token / (19.5e12 * 0.4), rel=1e-12)
    half = replace(plain, precision="bf16").computing(size.flops_per_token, lambda: 0.0).seconds_per_token
    assert half == pytest.approx(whole / 16, rel=1e-12)
    assert Simulation(2, PLAIN, gpu="measured", precision="bf16").computing(1.0, lambda: 7.0).seconds_per_token == 7.0
    for gpu, words in (("core", "is not known"), ("t4", "take --precision fp16, or a --gpu that has bf16")):
        with pytest.raises(ConfigurationError, match=words):
            Simulation(2, PLAIN, gpu=gpu, precision="bf16")


def test_what_fits_follows_the_precision():
    request = {
        "target": 3.3,
        "workers": 8,
        "strategies": "ring",
        "accumulate": 1,
        "gpu": "t4",
        "micro_batch": "8,16,24,32",
    }
    half, whole = (
        planned_for(PlanRequest.of({**request, **more}), lambda _: None) for more in ({}, {"precision": "fp32"})
    )
    assert (max(half.at_once), max(whole.at_once)) == (24, 16)
    assert (half.written()["precision"], whole.written()["precision"]) == ("fp16", "fp32")
    by_batch = {one.micro_batch: one.step_seconds for one in half.candidates}
    compute = 16 * 1024 * model_named("gpt2-small").flops_per_token / 0.4
    slower = {one.micro_batch: one.step_seconds for one in whole.candidates}[16] - by_batch[16]
    assert slower == pytest.approx(compute / 8.1e12 - compute / 65e12, rel=0.1)  # less what hides in it


# What is computed once more.


@pytest.mark.parametrize(
    ("name", "output"), [("gpt2-small", 50257 * 768), ("llama2-7b", 32000 * 4096), ("bert-large", 0)]
)
def test_with_recompute_forward_is_done_twice_but_for_the_output_layer(name, output):
    """Forward is a third of the operations, 2 for each weight, of the output layer too (BERT's is not counted)."""
    flops = model_named(name).flops_per_token
    once, again = (
        bigbatch.simulate("ring", workers=4, model=name, network="infiniband-hdr", recompute=recompute)[0]
        for recompute in (False, True)
    )
    expected = (flops + flops / 3 - 2 * output) / flops
    assert again["compute_seconds"] / once["compute_seconds"] == pytest.approx(expected, rel=1e-12)
    assert again["busiest_port_bytes"] == once["busiest_port_bytes"]


def test_a_model_of_which_only_numbers_are_known_computes_all_of_forward_twice():
    once, again = (
        bigbatch.simulate("ps", workers=3, parameters=10**7, tokens=1000, recompute=recompute)[0]
        for recompute in (False, True)
    )
    assert again["compute_seconds"] / once["compute_seconds"] == pytest.approx(4 / 3, rel=1e-12)


def test_a_longer_backward_hides_more():
    """Buckets come when that part of backward is done: after 1/3 of the computing, or 1/4 if it is a third longer."""
    plain = replace(load(4_000_000, "fp32", bucket_bytes=4_000_000, layers=4), overlap=True)
    longer = replace(plain, size=replace(plain.size, recomputed=1.0))
    assert plain.ready().tolist() == pytest.approx([1 - 2 / 3 * left / 4 for left in (3, 2, 1, 0)])
    assert longer.ready().tolist() == pytest.approx([1 - 3 / 4 * left / 4 for left in (3, 2, 1, 0)])


def test_a_plan_with_recompute_takes_longer_and_has_room_for_more():
    asked = {"target": 3.3, "workers": 8, "strategies": "ring", "accumulate": 1, "gpu": "t4", "micro_batch": "8,16,48"}
    asked["overlap"] = False
    plain, again = (
        planned_for(PlanRequest.of({**asked, **more}), lambda _: None) for more in ({}, {"recompute": True})
    )
    assert (max(plain.at_once), max(again.at_once)) == (16, 48)
    assert "t4, blocks computed again" in again.title
    size, seconds = plain.size, {one.micro_batch: one.seconds for one in plain.candidates}
    assert all(one.seconds > seconds[one.micro_batch] for one in again.candidates if one.micro_batch in seconds)
    peak = 65e12 * 0.4
    longer = 8 * 1024 * (size.flops_per_token / 3 - 2 * 50257 * 768) / peak
    steps = [next(one.step_seconds for one in made.candidates if one.micro_batch == 8) for made in (plain, again)]
    assert steps[1] - steps[0] == pytest.approx(longer, rel=1e-6)


# The commands.


def simulate(*words):
    return CliRunner().invoke(cli, ["simulate", "ring", "--workers", "8", *words])


def test_titles_name_what_was_asked_for_and_json_says_it_always(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "draw_all", lambda *_: None)
    asked = ("--precision", "fp32", "--wire", "bf16")
    plain, changed = simulate("--out", str(tmp_path / "1")), simulate(*asked, "--out", str(tmp_path / "2"))
    assert "tokens a worker and update, a100." in plain.stdout
    assert "tokens a worker and update, a100 in fp32, gradients sent in bf16." in changed.stdout
    both = [json.loads((tmp_path / name / "summary.json").read_text()) for name in "12"]
    assert [(one["precision"], one["wire"]) for one in both] == [("bf16", "fp32"), ("fp32", "bf16")]
    assert [(one["rows"][0]["precision"], one["rows"][0]["wire"]) for one in both] == [
        ("bf16", "fp32"),
        ("fp32", "bf16"),
    ]
    times, ports = ([one["rows"][0][what] for one in both] for what in ("compute_seconds", "busiest_port_bytes"))
    assert times[1] == pytest.approx(16 * times[0])
    assert ports[0] == pytest.approx(2 * ports[1], rel=1e-3)


@pytest.mark.usefixtures("plain_network")
def test_a_bare_sum_says_what_is_sent():
    words = ("--bytes", "8MB", "--network", "net.toml")
    (row,) = json.loads(simulate(*words, "--wire", "fp16", "--json").stdout)
    n = 8 * 2**20
    assert row == {
        "strategy": "ring",
        "workers": 8,
        "bytes": n,
        "wire": "fp16",
        "communication_seconds": pytest.approx(HALVED["ring"](n), rel=0.05),
    }
    assert "sent in fp16" not in simulate(*words).stdout
    shown = simulate(*words, "--wire", "fp16").stdout
    assert "The numbers are sent in fp16; busbw is of what is sent." in shown
    assert "8 MB" in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--gpu", "v100", "--precision", "bf16"), "take --precision fp16, or a --gpu that has bf16 (a10g, l4, a100"),
        (("--gpu", "core", "--precision", "bf16"), "How fast a core computes in bf16 is not known"),
        (("--precision", "fp64"), "known: fp32, bf16, fp16"),
        (("--wire", "bf61"), "did you mean 'bf16'"),
        (("--bytes", "1MB", "--precision", "bf16"), "--precision is about updates of a model"),
        (("--bytes", "1MB", "--recompute"), "--recompute is about updates of a model"),
    ],
)
def test_what_does_not_go_together_is_refused(words, sentence):
    outcome = simulate(*words)
    assert outcome.exit_code
    assert sentence in f"{outcome.exception} {outcome.output}".replace("\n", " ")
