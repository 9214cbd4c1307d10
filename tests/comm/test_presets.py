"""Networks, GPUs, models and stragglers by name."""

import math
from itertools import islice

import numpy as np
import pytest

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.simulation.computing import (
    FORWARD_SHARE,
    UTILISATION,
    Computing,
    Stragglers,
    expected_backup,
    expected_synchronous,
    harmonic,
    stragglers_named,
)
from bigbatch.comm.simulation.gpus import GPU, GPUS, gpu_named
from bigbatch.comm.simulation.network_file import read_network
from bigbatch.comm.simulation.presets import NETWORKS, network_named
from bigbatch.models.decoder import Transformer, TransformerShape
from bigbatch.models.sizes import PUBLISHED, model_named, model_of, own_size

TOML = "alpha = 3e-6\nbandwidth = 2e9\ngamma = 1e-10\n"


def close_to(expected, samples):
    """Whether the mean of independent samples is within four standard errors of what it should be."""
    return abs(np.mean(samples) - expected) <= 4 * np.std(samples) / math.sqrt(len(samples))


def drawn(words, worker=0, seed=0, count=20_000):
    return np.array(list(islice(stragglers_named(words).factors(worker, seed), count)))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "free"])
def test_every_network_says_where_its_numbers_are_from(name):
    network = network_named(name)
    for wires in filter(None, (network.wires, network.inside)):
        for piece in wires.pieces:
            assert 0 < piece.alpha < 1e-3
            assert 1e8 <= piece.bandwidth < 1e12
    assert 0 < network.gamma < 1 / network.wires.pieces[0].bandwidth
    assert network.name == name
    assert all(word in network.source for word in ("Bandwidth", "α", "γ"))


def test_bandwidths_are_line_rates_over_eight():
    rates = {name: network.wires.pieces[0].bandwidth * 8 / 1e9 for name, network in NETWORKS.items()}
    assert rates.pop("free") == math.inf
    assert rates == {
        "ethernet-1g": 1, "ethernet-10g": 10, "ethernet-25g": 25, "ethernet-100g": 100, "ethernet-400g": 400,
        "infiniband-edr": 100, "infiniband-hdr": 200, "infiniband-ndr": 400, "dgx-h100": 400,
    }  # fmt: skip
    dgx = network_named("dgx-h100")
    assert (dgx.node_size, dgx.nics, dgx.inside.pieces[0].bandwidth) == (8, 8, 450e9)
    assert network_named("free").free
    assert all(network.source for network in NETWORKS.values())


@pytest.mark.parametrize(
    ("named", "wrong", "said"),
    [
        (network_named, "ethernet10g", r"Unknown network .* \(did you mean 'ethernet-10g'\?\)\. Known: .*this-machine"),
        (network_named, "nowhere.toml", "nowhere.toml cannot be read"),
        (gpu_named, "a10", r"Unknown GPU 'a10' \(did you mean 'a10g'\?\)\. Known: t4, "),
        (model_named, "gpt2-smal", r"Unknown model 'gpt2-smal' \(did you mean 'gpt2-small'\?\)"),
    ],
)
def test_what_is_unknown_is_answered_with_what_is_known(named, wrong, said):
    with pytest.raises(ConfigurationError, match=said):
        named(wrong)


def test_a_network_of_ones_own_is_read_from_its_file(tmp_path):
    (tmp_path / "mine.toml").write_text(TOML)
    assert network_named(str(tmp_path / "mine.toml")) == read_network(tmp_path / "mine.toml")


def test_this_machine_is_what_was_measured_on_it(tmp_path, monkeypatch):
    monkeypatch.setenv("BIGBATCH_CACHE", str(tmp_path))
    with pytest.raises(ConfigurationError, match="bigbatch-exp calibrate"):
        network_named("this-machine")
    (tmp_path / "this-machine.toml").write_text(TOML)
    network = network_named("this-machine")
    assert (network.name, network.wires.cost(2)) == ("this-machine", (3e-6, 1e-9))


def test_every_gpu_says_where_its_numbers_are_from():
    assert set(GPUS) == {"t4", "v100", "a10g", "l4", "a100", "h100", "h200", "rtx-4090"}
    for name in GPUS:
        gpu = gpu_named(name)
        assert (gpu.name, bool(gpu.source)) == (name, True)
        assert 1.6e10 <= gpu.memory_bytes < 2e11
        assert 1e11 < gpu.memory_bandwidth < 1e13


# From the makers' own pages, in TFLOPS: FP32 without TF32, and tensor cores on dense 16-bit matrices, added up in FP32.
PEAKS = {
    "t4": (8.1, None, 65),
    "v100": (15.7, None, 125),
    "a10g": (35, 70, 70),
    "l4": (30.3, 242 / 2, 242 / 2),
    "a100": (19.5, 312, 312),
    "h100": (66.9, 1979 / 2, 1979 / 2),
    "h200": (66.9, 1979 / 2, 1979 / 2),
    "rtx-4090": (82.6, 165.2, 165.2),
}


@pytest.mark.parametrize("name", PEAKS)
def test_peaks_are_those_of_the_datasheets(name):
    gpu = gpu_named(name)
    for precision, peak in zip(("fp32", "bf16", "fp16"), PEAKS[name], strict=True):
        if peak is not None:
            assert gpu.peak(precision) == pytest.approx(peak * 1e12, rel=1e-3)
        else:
            others = r"a10g, l4, a100, h100, h200, rtx-4090"
            with pytest.raises(ConfigurationError, match=f"{name} does not compute in {precision}: .*fp16.*{others}"):
                gpu.peak(precision)
    assert gpu.half == ("fp16" if PEAKS[name][1] is None else "bf16")


@pytest.mark.parametrize("flops", [{"fp32": 1e12}, {"bf16": 1e12, "fp16": 1e12}, {}, 1e12])
def test_a_gpu_has_peaks_in_fp32_and_in_half_precision(flops):
    with pytest.raises(ConfigurationError, match="flops of mine cannot be"):
        GPU("mine", flops, 10**9, 1e11, "here")
    with pytest.raises(ConfigurationError, match="flops of mine in fp16"):
        GPU("mine", {"fp32": 1e12, "fp16": 0.5}, 10**9, 1e11, "here")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2-small", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("llama2-7b", 6_738_415_616),
        ("gpt3-175b", 174_604_259_328),
        ("bert-large", 335_141_888),
    ],
)
def test_models_have_as_many_parameters_as_were_published(name, parameters):
    model = model_named(name)
    assert (model.name, model.parameters, sum(model.parts)) == (name, parameters, parameters)
    assert len(model.parts) >= model.layers + 2
    assert model.parts[-1] >= model.vocabulary * model.width
    attention = 12 * model.layers * model.width * model.context
    assert 0.8 * 6 * parameters < model.flops_per_token - attention <= 6 * parameters


def test_training_gpt3_costs_what_was_published():
    """Brown et al. 2020, table D.1: 3.14e23 operations for 300e9 tokens, without attention."""
    model = model_named("gpt3-175b")
    without = model.flops_per_token - 12 * model.layers * model.width * model.context
    assert without * 300e9 == pytest.approx(3.14e23, rel=0.005)


@pytest.mark.parametrize("shape", [(300, 16, 1, 16, 2), (97, 33, 3, 24, 4)])
def test_our_own_transformer_has_the_parameters_that_its_size_says(shape):
    module = Transformer(TransformerShape(*shape))
    size = own_size(*shape[:4])
    norm, block, tables = (
        sum(parameter.numel() for part in parts for parameter in part.parameters())
        for parts in ([module.norm], [module.blocks[0]], [module.tokens, module.positions])
    )
    assert size.parts == (norm, *[block] * len(module.blocks), tables)
    assert size.parameters == sum(parameter.numel() for parameter in module.parameters())


def test_every_name_of_a_model_is_its_own():
    assert all(model_named(name).name == name for name in PUBLISHED)


def test_a_model_of_given_numbers_is_spread_evenly():
    model = model_of(103, layers=10)
    assert (model.parameters, model.flops_per_token, model.parts) == (103, 618, (11,) * 3 + (10,) * 7)
    assert model_of(64, 1e3).flops_per_token == 1e3
    for wrong in ((9, None, 10), (9, None, 0), (100, -1.0, 1), (100, math.nan, 1)):
        with pytest.raises(ConfigurationError):
            model_of(*wrong)


def test_computing_takes_a_third_forward():
    computing = Computing.from_flops(6e9, 100e12, 0.5)
    assert computing.seconds_per_token == pytest.approx(1.2e-4)
    assert computing.forward(10) == pytest.approx(4e-4)
    assert computing.backward(10) == pytest.approx(8e-4)
    assert Computing.from_flops(1e9, 1e12).seconds_per_token == pytest.approx(1e-3 / UTILISATION)
    assert FORWARD_SHARE * 3 == 1
    for wrong in ((-1, 1e12, 0.5), (1e9, 0, 0.5), (1e9, 1e12, 0), (1e9, 1e12, 1.1), (math.nan, 1e12, 0.5)):
        with pytest.raises(ConfigurationError):
            Computing.from_flops(*wrong)
    with pytest.raises(ConfigurationError):
        Computing(-1.0)


def test_the_exponential_adds_its_mean():
    extra = drawn("exponential:0.5") - 1
    assert extra.min() >= 0
    assert close_to(0.5, extra)
    assert farthest(extra, lambda x: 1 - np.exp(-x / 0.5)) < 1.95 / math.sqrt(len(extra))


def test_the_lognormal_has_median_one():
    logarithms = np.log(drawn("lognormal:0.3")) / 0.3
    assert close_to(0, logarithms)
    assert close_to(1, logarithms**2)
    normal = np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)))
    assert farthest(logarithms, normal) < 1.95 / math.sqrt(len(logarithms))


def farthest(samples, distribution):
    """Kolmogorov and Smirnov's distance; above 1.95/√n for one in a thousand samples of the distribution."""
    expected = distribution(np.sort(samples))
    steps = np.arange(len(samples) + 1) / len(samples)
    return max((steps[1:] - expected).max(), (expected - steps[:-1]).max())


def test_a_slow_rank_is_slow_every_time_and_no_other_is():
    stragglers = stragglers_named("slow:2:3, exponential:0")
    assert list(islice(stragglers.factors(2, 0), 3)) == [3, 3, 3]
    assert list(islice(stragglers.factors(1, 0), 3)) == [1, 1, 1]


def test_what_slows_is_multiplied():
    assert np.allclose(drawn("slow:0:3,exponential:1"), 3 * drawn("exponential:1"))
    both = drawn("exponential:0.5,lognormal:0.3")
    assert (both == drawn("lognormal:0.3,exponential:0.5")).all()
    assert close_to(1.5 * math.exp(0.3**2 / 2), both)


def test_factors_are_the_workers_own_whoever_draws_when():
    stragglers = stragglers_named("lognormal:0.5")
    alone = [list(islice(stragglers.factors(worker, 7), 50)) for worker in range(3)]
    streams = [stragglers.factors(worker, 7) for worker in range(3)]
    woven = [[], [], []]
    for worker in np.random.default_rng(0).permutation([0, 1, 2] * 50):
        woven[worker].append(next(streams[worker]))
    assert woven == alone
    assert len({*alone[0], *alone[1], *alone[2], *drawn("lognormal:0.5", seed=8, count=50)}) == 200
    first, second = np.log(drawn("lognormal:1")), np.log(drawn("lognormal:1", worker=1))
    assert close_to(0, first * second)


def test_failures_have_a_rank_and_a_time():
    assert stragglers_named("none") == Stragglers()
    assert list(islice(stragglers_named("none").factors(0, 0), 2)) == [1, 1]
    stragglers = stragglers_named("fail:1:2.5,fail:3:0")
    assert dict(stragglers.failures) == {1: 2.5, 3: 0}
    stragglers.check_ranks(4)
    with pytest.raises(ConfigurationError, match="rank 3, but there are 3 workers"):
        stragglers.check_ranks(3)


@pytest.mark.parametrize(
    "words",
    ["", "slow", "slow:1", "slow:1:2:3", "exponential:-1", "exponential:much", "exponential:inf", "lognormal:nan",
     "slow:-1:2", "slow:1.5:2", "fail:0:-1", "none:1", "none,", "gamma:1"],
)  # fmt: skip
def test_words_that_are_no_stragglers_are_refused_with_those_that_are(words):
    with pytest.raises(ConfigurationError, match=r"no kind of straggler.*\. Known: none, exponential:R, .*SECONDS"):
        stragglers_named(words)


@pytest.mark.parametrize("words", ["exponential:1,exponential:1", "slow:0:1,slow:0:2", "fail:0:1,fail:00:1"])
def test_nothing_is_said_twice(words):
    with pytest.raises(ConfigurationError, match="say twice"):
        stragglers_named(words)


def test_harmonic_numbers():
    assert [harmonic(n) for n in (0, 1, 2, 4)] == pytest.approx([0, 1, 1.5, 25 / 12])
    assert harmonic(10**5) == pytest.approx(math.log(10**5) + 0.5772156649015329, abs=1e-5)


@pytest.mark.parametrize(("workers", "spares"), [(1, 0), (8, 0), (8, 1), (8, 7), (20, 3)])
def test_what_is_expected_of_the_slowest_is_what_is_drawn(workers, spares):
    delta, relative = 2.0, 0.5
    times = delta * np.array([drawn(f"exponential:{relative}", worker, count=4000) for worker in range(workers)])
    taken = np.sort(times, axis=0)[workers - spares - 1]
    assert close_to(expected_backup(delta, delta * relative, workers, spares), taken)
    if not spares:
        assert expected_synchronous(2, 1, workers) == pytest.approx(2 + harmonic(workers))


def test_backup_workers_are_fewer_than_all():
    assert expected_backup(1, 1, 8, 2) == pytest.approx(1 + harmonic(8) - harmonic(2))
    for spares in (8, -1):
        with pytest.raises(ConfigurationError, match="at least one must be waited for"):
            expected_backup(1, 1, 8, spares)
