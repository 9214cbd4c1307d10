"""The scale of losses in fp16: its rule by hand, and trainings on gradients that fp16 has, so that all is exact."""

import json
import math

import numpy as np
import pytest
import torch
from jobs import PROGRAMS, Run, quick
from spiky import EXAMPLES, GRADIENTS, WIDTH, Product, Spiky, halvings

import bigbatch
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.transports.alone import Alone
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.update import Outcome
from bigbatch.optimizers.changed import clipped, scheduled
from bigbatch.training import loss_scale
from bigbatch.training.batches import BatchPlan
from bigbatch.training.loss_scale import DynamicLossScale, LossScale, MeanLoss, loss_scale_for
from bigbatch.training.order import DataOrder
from bigbatch.training.precision import PRECISIONS
from bigbatch.training.trainer import Trainer

FP16 = PRECISIONS["fp16"]
GOOD, BAD, EMPTY, LATE = Outcome.APPLIED, Outcome.NOT_FINITE, Outcome.NO_DATA, Outcome.DROPPED
SEED, RATE = 11, 2.0**-4
CLIP = 0.1
"""Largest norm of a mean gradient here, which three in four exceed."""
SEEN = 96
"""Examples of a training here: a whole number of batches for any number of workers."""


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], 2.0**16),
        ([BAD], 2.0**15),
        ([BAD, GOOD, BAD], 2.0**14),
        ([GOOD] * 1_999, 2.0**16),
        ([GOOD] * 2_000, 2.0**17),
        ([GOOD] * 3_999, 2.0**17),
        ([GOOD] * 4_000, 2.0**18),
        ([GOOD] * 1_999 + [BAD] + [GOOD] * 1_999, 2.0**15),
        ([GOOD] * 1_999 + [BAD] + [GOOD] * 2_000, 2.0**16),
        ([GOOD] * 1_999 + [EMPTY, LATE, GOOD], 2.0**17),
        ([BAD] * 26, 2.0**-10),
    ],
)
def test_the_scale_follows_the_outcomes(events, expected):
    scale, resumed = DynamicLossScale(64), DynamicLossScale(64)
    for event in events:
        scale.follow(event)
        again = DynamicLossScale(64)
        again.load_state_dict(json.loads(json.dumps(resumed.state_dict())))
        resumed = again
        resumed.follow(event)
    assert scale.value == resumed.value == expected
    assert scale.factor == resumed.factor == expected / 64


def test_a_training_that_has_diverged_is_told_what_to_do():
    scale = DynamicLossScale(1)
    for _ in range(26):
        scale.follow(BAD)
    with pytest.raises(ConfigurationError, match=r"smallest loss scale, 0.000976562.*--learning-rate.*bf16"):
        scale.follow(BAD)


@pytest.mark.parametrize(
    ("tokens", "power"), [(0.3, 1), (1, 1), (1023.9, 1024), (1_448, 1024), (1_449, 2048), (1e9, 2**30)]
)
def test_expected_tokens_become_a_power_of_two(tokens, power):
    assert MeanLoss(tokens).factor == 1 / power
    assert DynamicLossScale(tokens).factor == 2.0**16 / power


def test_only_fp16_needs_a_scale():
    kinds = {name: type(loss_scale_for(precision, 8)) for name, precision in PRECISIONS.items()}
    assert kinds == {
        **dict.fromkeys(("fp32", "bf16", "bf16-weights"), LossScale),
        "fp16": DynamicLossScale,
        "fp16-unscaled": MeanLoss,
    }


def sgd(named):
    return torch.optim.SGD([parameter for _, parameter in named], lr=RATE, momentum=0.5)


def trained(transport, name, plan_of, precision=FP16, make=sgd, stop=None, state=None, **options):
    """Updates, weights and state of a training on `Spiky`."""
    model = Product.build()
    parameters = FlatParameters(model)
    strategy = STRATEGIES.load(name)(transport)
    strategy.start(parameters, make, with_squares=options.get("measure_noise", False))

    def work():
        trainer = Trainer(
            model,
            Spiky(),
            strategy,
            parameters,
            plan_of(strategy.workers),
            SEEN,
            SEED,
            precision=precision,
            **options,
        )
        if state is not None:
            trainer.load_state_dict(state)
        updates = []
        for update in trainer.updates():
            updates.append(update)
            if update.number == stop:
                break
        return updates, parameters.values.clone(), trainer.state_dict()

    result = strategy.run(work)
    strategy.close()
    return result


def batches(workers, micro_batch, accumulation):
    """The examples of every micro-batch of every update."""
    order, each = DataOrder(EXAMPLES, SEED), micro_batch * accumulation * workers
    for first in range(0, SEEN, each):
        yield [order.at(range(start, start + micro_batch)) for start in range(first, first + each, micro_batch)]


def by_hand(applied, workers, micro_batch, accumulation, factor=lambda _: 1.0, clip=math.inf):
    """The weights after the updates that were applied, of SGD with momentum, in float64.

    `clip` is the largest norm of a mean gradient.
    """
    weights, velocity, step = np.zeros(WIDTH), np.zeros(WIDTH), 0
    for micro_batches, good in zip(batches(workers, micro_batch, accumulation), applied, strict=True):
        if good:
            mean = np.concatenate([GRADIENTS[each] for each in micro_batches]).mean(0)
            mean *= min(1.0, clip / np.linalg.norm(mean))
            velocity = 0.5 * velocity + mean
            step += 1
            weights = weights - factor(step) * RATE * velocity
    return weights


@pytest.mark.parametrize("name", ["ring", "shared", "ps", "recursive-doubling"])
@pytest.mark.parametrize(("workers", "accumulation"), [(1, 1), (2, 1), (2, 2), (3, 2)])
def test_workers_in_step_skip_together_and_keep_one_scale(name, workers, accumulation):
    """Micro-batches of 4 examples: the oracle says which updates overflow; everything else is exact."""
    if name == "shared" and workers > 1:
        pytest.skip("ranks of a cluster share no memory")
    expected = list(halvings(batches(workers, 4, accumulation), expected=4))
    skipped = [number for number, (good, _) in enumerate(expected) if not good]
    assert skipped
    strategy = STRATEGIES.load(name)
    wires = [Alone()] if workers == 1 and name != "ps" else None
    work = lambda t: trained(t, name, lambda n: BatchPlan(4, accumulation, n))  # noqa: E731 - for two ways to run it
    results = [work(wires[0])] if wires else Cluster(strategy.ranks_for(workers)).run(work)
    for updates, values, _ in filter(None, results):
        assert [(update.applied, update.loss_scale) for update in updates] == expected
        assert updates[-1].total_tokens == sum(4 * workers * accumulation for good, _ in expected if good)
        weights = by_hand([good for good, _ in expected], workers, 4, accumulation)
        assert values.tolist() == pytest.approx(weights.tolist(), rel=1e-6)  # of float32 against float64
    plain = Cluster(strategy.ranks_for(workers)).run(
        lambda t: trained(t, name, lambda n: BatchPlan(4, accumulation, n), PRECISIONS["fp32"])
    )
    for updates, _, _ in filter(None, plain):
        assert all(update.applied for update in updates)
        assert all(math.isnan(update.loss_scale) for update in updates)


@pytest.mark.parametrize("change", ["clipped", "scheduled", "noise"])
def test_clipping_schedules_and_noise_see_gradients_without_the_scale(change):
    """Against fp32 on the same updates: clip after unscale (pytorch/examples 1196), and no schedule moves on a skip
    (pytorch 44511)."""

    def schedule(step, *_):
        return 2.0 ** -(step % 4)

    make = {
        "clipped": lambda: clipped(sgd, CLIP),
        "scheduled": lambda: scheduled(sgd, schedule, 100, 0, 0.0),
        "noise": lambda: sgd,
    }[change]
    seen = {}
    spikes = {update for update, (good, _) in enumerate(halvings(batches(1, 4, 2), expected=4)) if not good}
    for precision in ("fp16", "fp32"):
        updates, values, _ = trained(
            Alone(),
            "ring",
            lambda n: BatchPlan(4, 2, n),
            PRECISIONS[precision],
            make(),
            measure_noise=change == "noise",
        )
        seen[precision] = updates, values
    half, full = seen["fp16"], seen["fp32"]
    assert {number for number, update in enumerate(half[0]) if not update.applied} == spikes
    first = min(spikes)
    for one, other in zip(half[0][:first], full[0][:first], strict=True):
        assert one.gradient_square == pytest.approx(other.gradient_square, rel=1e-6, nan_ok=True)
        assert one.gradient_variance == pytest.approx(other.gradient_variance, rel=1e-6, nan_ok=True)
    applied = [update.applied for update in half[0]]
    weights = {
        "clipped": lambda: by_hand(applied, 1, 4, 2, clip=CLIP),
        "scheduled": lambda: by_hand(applied, 1, 4, 2, lambda step: 2.0 ** -(step % 4)),
        "noise": lambda: by_hand(applied, 1, 4, 2),
    }[change]()
    assert half[1].tolist() == pytest.approx(weights.tolist(), rel=1e-6)
    assert change == "noise" or np.abs(weights - by_hand(applied, 1, 4, 2)).max() > 1e-3


def test_before_the_first_spike_half_precision_is_exact():
    def weights(precision):
        return trained(Alone(), "ring", lambda n: BatchPlan(4, 1, n), PRECISIONS[precision], clipped_sgd, stop=first)[1]

    clipped_sgd = clipped(sgd, CLIP)
    first = next(number for number, (good, _) in enumerate(halvings(batches(1, 4, 1), expected=4)) if not good)
    assert first > 2
    assert weights("fp16").tolist() == weights("fp32").tolist()


@pytest.mark.parametrize("name", ["ps:async", "ps:ssp:2", "ps:backup:1"])
def test_workers_out_of_step_have_a_scale_each(name):
    """The worker whose gradient overflows is refused and halves its own scale; the other goes on, and is applied."""
    strategy = STRATEGIES.load(name)
    results = Cluster(strategy.ranks_for(2)).run(lambda t: trained(t, name, lambda n: BatchPlan(4, 1, n)))
    shares, seen = list(batches(2, 4, 1)), []
    for worker, (updates, values, _) in enumerate(filter(None, results)):
        assert torch.isfinite(values).all()
        number, value = 0, 2.0**16
        for update in updates:
            fits = np.abs(GRADIENTS[shares[number][worker]].sum(0)).max() * value / 4 <= 65504
            assert update.loss_scale == value
            assert update.outcome in ((GOOD, LATE) if fits else (BAD, LATE))
            value /= 2 if update.outcome is BAD else 1
            number = update.number
        seen.append([update.loss_scale for update in updates])
    assert min(map(min, seen)) < 2.0**16
    assert seen[0] != seen[1]


def test_a_server_leaves_out_what_one_worker_cannot_use():
    """Stale-synchronous: of two gradients of an update one is not finite; the other makes the update alone."""
    from bigbatch.comm.parameters import Piece
    from bigbatch.comm.server.consistency import BoundedStaleness
    from bigbatch.comm.server.shard import Shard
    from bigbatch.comm.server.staleness import StaleGradients

    shard = Shard(
        torch.ones(3),
        [Piece("w", (3,), 0, 3)],
        lambda named: torch.optim.SGD([p for _, p in named], lr=0.5),
        BoundedStaleness(1),
        StaleGradients(),
    )
    for worker in range(2):
        shard.join(worker)
        shard.read(worker)

    def push(worker, value, finite=True):
        landing = shard.landing()
        landing.fill_(value)
        return shard.push(worker, landing, 2.0, 1.0, finite=finite)

    assert push(0, math.inf, finite=False) is BAD
    assert push(1, 4.0) is GOOD
    assert shard.values.tolist() == [0.0] * 3
    assert (shard.version, shard.tokens, shard.skipped, shard.taken) == (1, 2.0, 0, 1)
    assert push(0, math.nan, finite=False) is BAD
    assert push(1, math.nan, finite=False) is BAD
    assert (shard.version, shard.tokens, shard.skipped, shard.clocks.done) == (1, 2.0, 1, 2)


def test_a_training_resumes_with_its_scale():
    plan = lambda n: BatchPlan(4, 1, n)  # noqa: E731 - a name for it
    whole, values, _ = trained(Alone(), "ring", plan)
    stop = 1 + next(number for number, update in enumerate(whole) if not update.applied)
    _, _, state = trained(Alone(), "ring", plan, stop=stop)
    rest, resumed, _ = trained(Alone(), "ring", plan, state=state)
    assert [update.loss_scale for update in rest] == [update.loss_scale for update in whole[stop:]]
    assert resumed.tolist() == values.tolist()


@pytest.mark.parametrize(("workers", "accumulation"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_a_loop_of_ones_own_computes_in_fp16_as_the_trainer_does(workers, accumulation):
    """The oracle says from the tokens of a micro-batch which updates overflow; weights are equal to the last bit."""

    def own(transport):
        model = Product.build()
        session = bigbatch.attach(
            model,
            torch.optim.SGD,
            lr=RATE,
            momentum=0.5,
            precision="fp16",
            expected_tokens=4.0 * accumulation * workers,
            accumulation=accumulation,
            transport=transport,
        )
        outcomes = []
        for micro_batches in batches(workers, 4, accumulation):
            share = micro_batches[session.worker * accumulation :][:accumulation]
            for number, examples in enumerate(share, start=1):
                with session.autocast():
                    loss = model(torch.from_numpy(GRADIENTS[examples]).float()).float().sum()
                report = session.backward(loss, 4, last=number == accumulation)
            outcomes.append(report.outcome)
        values = model.weight.detach().flatten().clone()
        session.close()
        return outcomes, values

    def ours(transport):
        return trained(transport, "ring", lambda n: BatchPlan(4, accumulation, n))

    applied = [good for good, _ in halvings(batches(workers, 4, accumulation), expected=4)]
    assert not all(applied)
    for (outcomes, values), (_, expected, _) in zip(Cluster(workers).run(own), Cluster(workers).run(ours), strict=True):
        assert outcomes == [GOOD if good else BAD for good in applied]
        assert values.tolist() == expected.tolist()


def test_a_loop_of_ones_own_decides_itself_what_its_weights_are_in():
    with pytest.raises(ConfigurationError, match=r"precision.*bf16-weights.*fp32, bf16, fp16, fp16-unscaled"):
        bigbatch.attach(Product.build(), torch.optim.SGD, lr=1.0, precision="bf16-weights")


def test_small_gradients_vanish_without_a_scale():
    """2⁻²⁶ is below the smallest number of fp16, 2⁻²⁴; S keeps it."""

    class Tiny(Spiky):
        def batch(self, _, examples):
            return torch.full((len(examples), WIDTH), 2.0**-13)

        def loss(self, model, batch):
            return (model(batch).float() * 2.0**-13).sum(), len(batch)

    def gradient(name):
        model = Product.build()
        parameters = FlatParameters(model)
        strategy = STRATEGIES.load("ring")(Alone())
        strategy.start(parameters, sgd)
        trainer = Trainer(model, Tiny(), strategy, parameters, BatchPlan(4, 1, 1), 4, precision=PRECISIONS[name])
        list(trainer.updates())
        return parameters.values.tolist()

    assert gradient("fp32") == gradient("fp16") == [-RATE * 2.0**-26] * WIDTH
    assert gradient("fp16-unscaled") == [0.0] * WIDTH


def test_a_scale_is_constant_within_an_update_and_doubles_after(monkeypatch):
    monkeypatch.setattr(loss_scale, "GOOD_UPDATES", 4)
    updates, _, _ = trained(Alone(), "ring", lambda n: BatchPlan(4, 2, n), stop=6)
    first = next((number for number, update in enumerate(updates) if not update.applied), 6)
    assert [update.loss_scale for update in updates[:first]] == [2.0**16, 2.0**16, 2.0**16, 2.0**16, 2.0**17, 2.0**17][
        :first
    ]


WIRES = [("mpirun", "ring"), ("torchrun", "allreduce"), ("mpirun", "shared"), ("mpirun", "ps"), ("mpirun", "ps:async")]


@pytest.mark.parametrize(("launcher", "strategy"), quick(WIRES, lambda case: case == WIRES[0]))
def test_over_real_wires_one_ranks_overflow_skips_the_update_of_all(run: Run, tmp_path, launcher, strategy):
    ranks = "3" if strategy.startswith("ps") else "2"
    program = [*("mpirun", "-n", ranks, "bigbatch-exp")]
    if launcher == "torchrun":
        program = ["torchrun", "--nproc-per-node", ranks, "-m", "bigbatch.experiments"]
    file = PROGRAMS / "spiky.py"
    outcome = run(
        *program,
        *(strategy, "--task", f"{file}:Spiky", "--model", f"{file}:Product", "--precision", "fp16", "--tokens", "120"),
        *("--micro-batch", "4", "--accumulate", "1", "--arms", "accumulated", "--optimizer", "sgd", "--deadline", "60"),
        *("--out", tmp_path / "run", "--quiet"),
    )
    assert outcome.status == 0, outcome.err
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if line["kind"] == "update"]
    assert all(math.isfinite(line["loss"]) for line in lines)
    if strategy != "ps:async":
        expected = list(halvings(batches_in_run(), expected=4))
        assert [(line["applied"], line["loss_scale"]) for line in updates] == expected
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())["arms"][0]
        assert summary["skipped_updates"] == sum(not good for good, _ in expected) > 0
        assert summary["tokens"] == sum(8 for good, _ in expected if good)


def batches_in_run():
    """As `batches`, with the seed that a run has by default."""
    order = DataOrder(EXAMPLES, 0)
    for first in range(0, EXAMPLES, 8):
        yield [order.at(range(start, start + 4)) for start in range(first, first + 8, 4)]
