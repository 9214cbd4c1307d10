"""This machine as a network: the fit, measuring on networks that are known, the file, and the two commands."""

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner
from jobs import Run
from rich.console import Console

from bigbatch.comm.collectives.halving_doubling import halving_doubling
from bigbatch.comm.collectives.naive import naive
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.errors import ConfigurationError, LaunchError
from bigbatch.comm.measuring.calibration import ADDED, SIZES, Points, measure_points
from bigbatch.comm.measuring.fitting import fit_network, fit_wire
from bigbatch.comm.measuring.prediction import added_bytes, on_cores, predict_reduction, predict_server
from bigbatch.comm.simulation.network import FREE, Network, Piece, Wire, wire
from bigbatch.comm.simulation.network_file import as_toml, network_from, read_network
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.experiments.commands.main import cli
from bigbatch.experiments.commands.validate import print_validation
from bigbatch.experiments.figures.calibration import draw_calibration, draw_validation
from bigbatch.experiments.measuring.calibrate import calibrated, check_file, compared

PIECES = (Piece(0, 2e-6, 5e9), Piece(65536, 9e-6, 3e9), Piece(2**21, 40e-6, 1e9))
KNOWN = Network("known", Wire(*PIECES), gamma=1e-10)


def times(wires, noise=0.0, seed=0):
    factors = np.exp(noise * np.random.default_rng(seed).standard_normal(len(SIZES)))
    return {size: sum(wires.cost(size)) * factor for size, factor in zip(SIZES, factors.tolist(), strict=True)}


def close(wires, relative):
    """The pieces, with α that matters and bandwidths known so far."""
    return [(p.least, pytest.approx(p.alpha, relative), pytest.approx(p.bandwidth, relative)) for p in wires.pieces]


def parts(wires):
    return [(piece.least, piece.alpha, piece.bandwidth) for piece in wires.pieces]


@pytest.mark.parametrize("pieces", [PIECES[:1], PIECES[:2], PIECES])
def test_a_fit_gives_back_the_pieces(pieces):
    assert parts(fit_wire(times(Wire(*pieces)))) == close(Wire(*pieces), 1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_a_fit_stands_noise_and_points_far_off(seed):
    points = times(wire(5e-6, 4e9), noise=0.03, seed=seed)
    points[SIZES[4]] *= 30
    points[2**20] *= 5
    fitted = fit_wire(points)
    errors = [sum(fitted.cost(size)) / sum(wire(5e-6, 4e9).cost(size)) - 1 for size in SIZES]
    assert np.abs(errors).max() < 0.06
    adding = {size: 1e-10 * size * factor for size, factor in zip(ADDED, (1.02, 0.99, 7.0), strict=True)}
    assert fit_network(Points(points, adding=adding)).gamma == pytest.approx(1e-10, rel=0.03)


def test_no_larger_message_is_cheaper():
    """Cheap messages above 1 MB: the fit cannot follow down, and stays level."""
    points = {size: seconds / 50 if size > 2**20 else seconds for size, seconds in times(wire(5e-6, 4e9)).items()}
    fitted = fit_wire(points)
    costs = [sum(fitted.cost(size)) for size in range(4, 2**26, 2**16)]
    assert min(np.diff(costs)) >= 0


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ({}, "cannot be fitted to 0 sizes"),
        ({4: 1.0, 8: 1.0, 16: 1.0}, "cannot be fitted to 3 sizes of messages: measure at least 4"),
        ({4: 1.0, 8: 1.0, 16: 1.0, 32: -1.0}, "A message of 32 bytes took -1 s"),
        ({4: 1.0, 8: 0.0, 16: 1.0, 32: 1.0}, "A message of 8 bytes took 0 s"),
        ({4: 1.0, 8: math.nan, 16: 1.0, 32: 1.0}, "took nan s"),
    ],
)
def test_a_fit_says_when_there_is_none(points, message):
    with pytest.raises(ConfigurationError, match=message):
        fit_wire(points)


def test_a_sum_that_takes_less_than_no_time_is_refused():
    with pytest.raises(ConfigurationError, match="To add 4 bytes took -1 s"):
        fit_network(Points(times(wire(5e-6, 4e9)), adding={4: -1.0}))


@pytest.mark.parametrize("known", [KNOWN, Network("plain", wire(1e-3, 1e8), gamma=3e-9)], ids=lambda n: n.name)
def test_measuring_on_a_network_that_is_known_gives_its_numbers_back(known):
    def work(transport):
        return measure_points(transport, 0.1, 2**24)

    one, other = Cluster(2, network=known).run(work)
    assert one == other
    assert one.flops == 0
    fitted = fit_network(one)
    assert parts(fitted.wires) == close(known.wires, 1e-6)
    assert fitted.gamma == pytest.approx(known.gamma)
    assert one.ping_pong == pytest.approx({size: sum(known.wires.cost(size)) for size in SIZES[:-3]})


def test_what_takes_no_time_and_what_are_not_two_ranks_cannot_be_measured():
    def work(transport):
        return fit_network(measure_points(transport, 0.1, 2**21, SIZES[:5]))

    with pytest.raises(ConfigurationError, match="of 4 bytes took 0 s, which allows no fit"):
        Cluster(2, network=FREE).run(work)
    with pytest.raises(LaunchError, match=r"there are 3: start it with mpirun -n 2, or without mpirun\.") as raised:
        Cluster(3, network=KNOWN).run(work)
    assert raised.value.everywhere
    with pytest.raises(ConfigurationError, match="4096 bytes of memory are too little to measure in"):
        Cluster(2, network=KNOWN).run(lambda transport: measure_points(transport, 0.1, 4096))


@pytest.mark.parametrize(
    "network",
    [
        KNOWN,
        Network('ö "quoted" \\ back', wire(0.0, math.inf), source="two\nlines"),
        Network("nodes", wire(1e-6, 1e9), 1e-12, 8, 2, Wire(*PIECES), 4, 2.5, "x"),
    ],
    ids=["pieces", "words", "all"],
)
def test_a_network_can_be_read_back(network, tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(as_toml(network), encoding="utf-8")
    assert read_network(path) == network


def test_ranks_that_share_a_core_share_its_ports():
    """Closed formulas, with ⌈p/cores⌉ ranks' bytes in every port: of a ring, 2(p-1)/p·n each."""
    here, alone = Network("here", wire(0.0, 1e9)), 2 * 3 / 4 * 2**22 / 1e9
    assert predict_reduction(ring, here, 4, 4, 2**22) == pytest.approx(alone)
    assert predict_reduction(ring, here, 4, 2, 2**22) == pytest.approx(2 * alone)
    assert predict_reduction(ring, here, 4, 1, 2**22) == pytest.approx(4 * alone)
    assert on_cores(KNOWN, 2, 2) == KNOWN
    assert on_cores(KNOWN, 2, 8) == KNOWN
    shared = on_cores(KNOWN, 5, 2)
    assert (shared.node_size, shared.nics, shared.gamma) == (3, 1, pytest.approx(3e-10))
    with pytest.raises(ConfigurationError, match="4 ranks cannot run on 0 cores"):
        on_cores(KNOWN, 4, 0)


def test_a_core_does_not_add_while_it_copies():
    """Ring: (p-1)/p·n added by each rank; naive: (p-1)·n by rank 0; halving-doubling as the ring."""
    assert added_bytes(ring, 4, 4000).tolist() == added_bytes(halving_doubling, 4, 4000).tolist() == [3000] * 4
    assert added_bytes(naive, 4, 4000).tolist() == [12000, 0, 0, 0]
    assert added_bytes(ring, 1, 4000).tolist() == [0]
    nbytes, moving = 2**22, Network("moving", wire(0.0, 1e9))
    here = Network("here", wire(0.0, 1e9), gamma=3e-10)
    for schedule, cores, added in ((ring, 4, 3 / 4), (ring, 2, 6 / 4), (naive, 4, 3), (naive, 2, 3)):
        more = predict_reduction(schedule, here, 4, cores, nbytes) - predict_reduction(
            schedule, moving, 4, cores, nbytes
        )
        assert more == pytest.approx(added * nbytes * 3e-10)


def test_a_server_is_predicted_as_its_formula_has_it():
    """2α + 2Wnβ, and (W - 1 + 4/3)nγ that nothing hides; each rank has a core."""
    workers, nbytes = 3, 4 * 10**6
    here = Network("here", wire(1e-5, 1e9))
    assert predict_server(here, workers, 8, nbytes) == pytest.approx(2 * workers * nbytes / 1e9, rel=0.01)
    adding = predict_server(Network("here", wire(1e-5, 1e9), gamma=1e-10), workers, 8, nbytes)
    assert adding - predict_server(here, workers, 8, nbytes) == pytest.approx((2 + 4 / 3) * nbytes * 1e-10, rel=0.01)


def prediction(algorithm, predicted, nbytes=2**22):
    return {"algorithm": algorithm, "ranks": 3, "bytes": nbytes, "predicted": predicted}


def measurement(algorithm, seconds, nbytes=2**22):
    times = {"seconds": seconds, "seconds_low": 0.9 * seconds, "seconds_high": 1.2 * seconds}
    return {"algorithm": algorithm, "ranks": 3, "bytes": nbytes, **times, "algbw": 1.0}


def test_predictions_are_held_against_what_was_measured(tmp_path, capsys):
    predicted = [prediction("ring", 1.1e-3), prediction("naive", 3e-3), prediction("ring", 9e-3, 2**24)]
    measured = [measurement("naive", 2e-3), measurement("ring", 1e-3), measurement("ring", 10e-3, 2**24)]
    rows = compared(predicted, measured)
    assert [row["error"] for row in rows] == pytest.approx([0.1, 0.5, -0.1])
    assert [(row["algorithm"], row["predicted"], row["seconds"]) for row in rows] == [
        ("ring", 1.1e-3, 1e-3), ("naive", 3e-3, 2e-3), ("ring", 9e-3, 10e-3)]  # fmt: skip
    print_validation(Console(width=200), rows, 1.25)
    printed = capsys.readouterr().out
    assert "+50" in printed
    assert "median |error| is 10 %, the largest 50 %" in printed
    assert "1.25 × as long afterwards" in " ".join(printed.split())
    draw_validation(rows, tmp_path / "validation.png")
    assert (tmp_path / "validation.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigurationError, match="ring over 3 ranks, 16777216 bytes, was predicted but not measured"):
        compared(predicted, measured[:2])


def test_calibrate_measures_keeps_prints_and_draws(run: Run, tmp_path, cache):
    outcome = run("bigbatch-exp", "calibrate", "--seconds", "0.1", "--memory", "2MB", "--out", "here")
    assert outcome.status == 0, outcome.err
    assert "1 MB" in outcome.out
    assert "this-machine.toml: the network, for 2 MB of memory in each of two ranks" in outcome.out
    network = read_network(cache / "this-machine.toml")
    assert network.gamma > 0
    summary = json.loads((tmp_path / "here" / "summary.json").read_text())
    assert network_from(summary["network"], "summary") == network
    assert [row["bytes"] for row in summary["rows"]] == [size for size in SIZES if size <= 2**20]
    for row in summary["rows"]:
        assert row["fit_seconds"] == pytest.approx(sum(network.wires.cost(row["bytes"])))
        assert row["error"] == pytest.approx(row["fit_seconds"] / row["seconds"] - 1)
    assert summary["flops"] > 1e8
    assert (tmp_path / "here" / "calibration.png").read_bytes().startswith(b"\x89PNG")


def test_a_calibration_of_few_pieces_can_be_drawn(tmp_path):
    points = Points(times(wire(1e-6, 1e9)), adding={2**20: 1e-4})
    draw_calibration(calibrated(points, fit_network(points), 2**20), tmp_path / "calibration.png")
    assert (tmp_path / "calibration.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_that_cannot_be_written_is_known_before_it_is_measured(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigurationError, match=r"this-machine\.toml cannot be written: .* another with --network\."):
        check_file(tmp_path / "file" / "this-machine.toml")
    check_file(tmp_path / "new" / "this-machine.toml")
    assert not (tmp_path / "new" / "this-machine.toml").exists()


def test_validate_starts_its_ranks_itself(monkeypatch):
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    result = CliRunner().invoke(cli, ["validate"])
    assert isinstance(result.exception, LaunchError)
    assert "run it without mpirun or torchrun" in str(result.exception)
