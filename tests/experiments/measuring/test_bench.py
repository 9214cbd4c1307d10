"""The bench and what belongs to it: rows, figures, tables of measurements, races and targets."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from jobs import SMALL, Run

from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.measuring.served import Assigning, PlainMessages
from bigbatch.comm.reducers.collective import Collective, Scheduled
from bigbatch.comm.reducers.measure import Measurement, Reducing, measure
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.transports.families import Launcher
from bigbatch.comm.transports.launch import Launch
from bigbatch.experiments.commands.main import cli
from bigbatch.experiments.measuring.bench import Bench, SizeResults
from bigbatch.experiments.measuring.simulator_speed import ALLOWED
from bigbatch.experiments.measuring.targets import TARGETS

ROW_KEYS = ["algorithm", "ranks", "bytes", "seconds", "seconds_low", "seconds_high", "algbw", "busbw", "exact"]


def test_bench_measures_everything_in_one_run(run: Run, tmp_path):
    names = ["ring", "shared", "mpi", "allreduce"]
    outcome = run("mpirun", "-n", "3", "bigbatch-exp", "bench", "--bytes", "4KB,40KB", "--algorithms", ",".join(names),
                  "--seconds", "0.1", "--json", "--out", "here")  # fmt: skip
    assert outcome.status == 0, outcome.err
    rows = json.loads(outcome.out)
    assert [(row["bytes"], row["algorithm"]) for row in rows] == [(n, name) for n in (4096, 40960) for name in names]
    for row in rows:
        assert list(row) == ROW_KEYS
        assert (row["ranks"], row["exact"]) == (3, True)
        assert 0 < row["seconds_low"] <= row["seconds"] <= row["seconds_high"]
        assert row["algbw"] == pytest.approx(row["bytes"] / row["seconds"])
        assert row["busbw"] == pytest.approx(row["algbw"] * 4 / 3)
    summary = json.loads((tmp_path / "here" / "summary.json").read_text())
    assert summary["rows"] == rows
    assert [row["bytes"] for row in summary["memory"]] == [4096, 40960]
    assert (tmp_path / "here" / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_bench_starts_its_own_ranks_prints_a_table_and_says_what_it_left_out(run: Run):
    outcome = run("bigbatch-exp", "bench", "-n", "2", "--bytes", "1KB", "--seconds", "0.1")
    assert outcome.status == 0, outcome.err
    assert all(f"  {name} " in outcome.out for name in ("ring", "double-tree", "shared", "mpi", "allreduce"))
    assert "what memory allows" in outcome.out
    assert "left out" not in outcome.out


class Forgetful(Collective):
    """Sums all but the last element."""

    def _sum(self, tensor):
        Scheduled(ring, self.transport).reduce(tensor[:-1])


def test_a_wrong_sum_is_not_exact():
    def work(transport):
        operations = {"ring": Reducing(Scheduled(ring, transport)), "forgetful": Reducing(Forgetful(transport))}
        rows, memory = measure(operations, transport, 4000, 0.1)
        return [(row.algorithm, row.exact) for row in (*rows, memory)]

    assert Cluster(3).run(work) == [[("ring", True), ("forgetful", False), ("memory", True)]] * 3


@pytest.mark.parametrize("nbytes", [1, 4, 44, 40_004, 600_004])
def test_servers_sum_exactly_and_count_only_their_workers(nbytes):
    """In 3 workers and 2 servers nothing divides, and one element leaves a server nothing."""

    def work(transport):
        compared = Bench(transport, Launch(Launcher.NONE), ["ring", "naive"], (1, 2))
        block = compared.run(nbytes, 0.1)
        measurements = [*block.rows, block.port, block.memory]
        return [(row.algorithm, row.ranks, row.nbytes, row.exact) for row in measurements], compared.overhead(0.1)

    expected = [("ring", 3), ("naive", 3), ("1 server", 3), ("2 servers", 3), ("one port", 1), ("memory", 3)]
    rows = [(name, ranks, max(4, nbytes), True) for name, ranks in expected]
    assert Cluster(5).run(work) == [(rows, 0.0)] * 5


@pytest.mark.parametrize("broken", ["servers", "wires"])
def test_a_server_that_is_wrong_is_found_out(monkeypatch, broken):
    def all_but_the_last(optimizer):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.data[:-1] = parameter.grad[:-1]

    def nothing_comes_back(messages, number):
        pass

    if broken == "servers":
        monkeypatch.setattr(Assigning, "step", all_but_the_last)
    else:
        monkeypatch.setattr(PlainMessages, "run", nothing_comes_back)
    name = "1 server, 2 servers" if broken == "servers" else "one port"

    def work(transport):
        compared = Bench(transport, Launch(Launcher.NONE), ["ring"], (1, 2))
        with pytest.raises(ConfigurationError, match=f"{name} gave a wrong sum of 4004 bytes over 2 ranks") as raised:
            compared.run(4004, 0.1)
        with pytest.raises(ConfigurationError, match="gave a wrong sum of 4 bytes over 1 rank"):
            compared.overhead(0.1)
        return raised.value.everywhere

    assert Cluster(4).run(work) == [True] * 4


@pytest.mark.parametrize(("servers", "bound"), [(1, 8e-3), (2, 4e-3), (3, 8e-3 / 3), (4, 2e-3), (8, 2e-3)])
def test_the_incast_bound_is_of_the_busiest_port(servers, bound):
    """Of 4 workers, K servers take in 4n/K each, and a worker gives out n: with n bytes both ways in 2 ms."""

    def row(name, ranks, seconds):
        return Measurement(name, ranks, nbytes=1000, seconds=np.full(3, seconds), exact=True)

    rows = [row("ring", 4, 5e-3), row("servers", 4, 9e-3)]
    block = SizeResults(rows, {"servers": servers}, memory=row("memory", 4, 1e-3), port=row("one port", 1, 2e-3))
    ring_row, served = block.as_json()
    assert list(ring_row) == ROW_KEYS
    assert list(served) == [*ROW_KEYS, "servers", "bound_seconds"]
    assert (served["servers"], served["seconds"]) == (servers, 9e-3)
    assert served["bound_seconds"] == pytest.approx(bound)


@pytest.mark.slow
def test_bench_measures_what_is_sent_in_half_precision_beside_float32(run: Run, tmp_path):
    words = ("bench", "-n", "2", "--algorithms", "ring,shared", "--wires", "bf16,fp16", "--bytes", "4KB,1MB")
    outcome = run("bigbatch-exp", *words, "--seconds", "0.2", "--out", tmp_path / "b", deadline=60)
    assert outcome.status == 0, outcome.err
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())
    names = {row["algorithm"] for row in summary["rows"]}
    assert names == {"ring", "shared", "ring bf16", "ring fp16"}
    assert all(row["exact"] for row in summary["rows"])
    assert "shared bf16: --wire bf16 has nothing to make smaller: shared sends no gradients" in outcome.out
    assert "float32" in outcome.out


@pytest.mark.slow
def test_bench_measures_servers_beside_all_reduces(run: Run, tmp_path):
    outcome = run("mpirun", "-n", "5", "bigbatch-exp", "bench", "--servers", "2,1", "--algorithms", "ring,shared,mpi",
                  "--bytes", "4004,300004", "--seconds", "0.1", "--json", "--out", "here")  # fmt: skip
    assert outcome.status == 0, outcome.err
    rows = json.loads(outcome.out)
    names = ["ring", "shared", "mpi", "1 server", "2 servers"]
    assert [(row["bytes"], row["algorithm"]) for row in rows] == [(n, name) for n in (4004, 300004) for name in names]
    assert all((row["ranks"], row["exact"]) == (3, True) for row in rows)
    summary = json.loads((tmp_path / "here" / "summary.json").read_text())
    assert summary["rows"] == rows
    ports = {row["bytes"]: row["seconds"] for row in summary["ports"]}
    assert [(row["servers"], row["bound_seconds"] / ports[row["bytes"]]) for row in rows if "servers" in row] == (
        [(1, pytest.approx(3)), (2, pytest.approx(1.5))] * 2
    )
    assert isinstance(summary["overhead_seconds"], float)
    assert (tmp_path / "here" / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_bench_starts_servers_besides_the_workers(run: Run):
    outcome = run("bigbatch-exp", "bench", "-n", "2", "--servers", "1", "--bytes", "1KB", "--seconds", "0.1")
    assert outcome.status == 0, outcome.err
    assert all(f"  {name} " in outcome.out for name in ("ring", "mpi", "one port, both ways", "1 server"))
    assert "2 ranks, float32" in outcome.out
    assert "left out: allreduce: TorchDistributed takes all 3 processes that were started" in outcome.out
    assert outcome.out.count("left out") == 1


@pytest.mark.parametrize("servers", ["0", "-1", "two", "1,", "1.5"])
def test_a_number_of_servers_that_is_none_is_refused(servers):
    result = CliRunner().invoke(cli, ["bench", "--servers", servers])
    assert result.exit_code == 2
    assert "Invalid value for '--servers'" in result.output


def test_a_bench_without_workers_is_refused(run: Run):
    outcome = run("mpirun", "-n", "3", "bigbatch-exp", "bench", "--servers", "1,2")
    assert outcome.status == 2
    assert outcome.err.strip() == (
        "bigbatch-exp: A bench needs at least two ranks besides the 2 that serve: start it with mpirun -n 4 or more, "
        "or with -n 2."
    )


def test_what_cannot_run_beside_servers_is_refused_if_it_was_asked_for(run: Run):
    outcome = run("mpirun", "-n", "4", "bigbatch-exp", "bench", "--servers", "1", "--algorithms", "ring,allreduce")
    assert outcome.status == 2
    assert "TorchDistributed takes all 4 processes that were started" in outcome.err


def test_bandwidths_are_those_of_nccl_tests():
    """nccl-tests, doc/PERFORMANCE.md: algbw = S/t, busbw = algbw · 2(n-1)/n for all-reduce."""
    row = Measurement("x", ranks=4, nbytes=8_000_000, seconds=np.array([1e-3, 4e-3, 2e-3]), exact=True)
    assert (row.median, row.algbw, row.busbw) == (2e-3, 4e9, 6e9)
    assert (row.low, row.high) == (1.5e-3, 3e-3)


@pytest.mark.slow
def test_tune_keeps_a_table_and_auto_says_what_it_took_from_it(run: Run, cache):
    outcome = run("bigbatch-exp", "tune", "-n", "2")
    assert outcome.status == 0, outcome.err
    (kept,) = cache.glob("tuning-*-MPITransport-2.kept")
    table = json.loads(kept.read_text().partition("\n")[2])
    assert {"ring", "shared", "mpi"} <= table["1024"].keys()
    fastest = min(table["16384"], key=table["16384"].get)  # the gradients below are nearest to that
    outcome = run("mpirun", "-n", "2", "bigbatch-exp", "auto", "--arms", "small", "--json", *SMALL)
    assert outcome.status == 0, outcome.err
    summary = json.loads(outcome.out)
    (arm,) = summary["arms"]
    assert arm["remarks"] == [f"auto picked {fastest} for buckets of {4 * summary['parameters'] / 2**20:.3g} MB"]
    assert arm["remarks"][0] in outcome.err
    assert "measuring" not in outcome.err


@pytest.mark.slow
def test_a_race_is_run_in_turns(run: Run):
    outcome = run("bigbatch-exp", "race", "shared", "ring", "-n", "2", "--turns", "1", "--micro-batch", "1",
                  "--context", "16", "--json")  # fmt: skip
    assert outcome.status == 0, outcome.err
    rows = {row["contestant"]: row for row in json.loads(outcome.out)}
    assert list(rows) == ["shared", "ring", "DistributedDataParallel", "no exchange"]
    assert all(row["parameters"] > 4e6 and row["tokens_per_update"] == 32 for row in rows.values())
    ratio = rows["ring"]["tokens_per_second"] / rows["no exchange"]["tokens_per_second"]
    assert rows["ring"]["against"]["no exchange"] == pytest.approx(ratio)


def test_targets_are_ratios_of_what_was_measured():
    def rows(seconds):
        return {"rows": [{"algorithm": a, "bytes": b, "seconds": s} for (a, b), s in seconds.items()]}

    sizes = [2**18, 2**22, 2**25]
    seconds = {(name, size): factor * size for name, factor in (("shared", 1.0), ("ring", 2.0), ("mpi", 3.0),
               ("allreduce", 10.0), ("ring bf16", 1.6), ("allreduce bf16", 8.0)) for size in sizes}  # fmt: skip
    against = {"DistributedDataParallel": 1.5, "no exchange": 0.9}
    race = [{"contestant": "shared", "tokens_per_update": 256, "against": against}]
    served = {"algorithm": "1 server", "bytes": 2**25, "seconds": 10.0, "bound_seconds": 7.0}
    servers = {"rows": [served], "overhead_seconds": 0.2e-3}
    measured = {"bench-2": rows(seconds), "bench-4": rows(seconds), "bench-servers": servers, "race": race,
                "simulator": {"a message on a cluster": ALLOWED["a message on a cluster"] / 2},
                "optimizers": {"lamb": 2.6}, "noise": 1.01, "checks": 0.001, "translation": 0.95}  # fmt: skip
    assert [target.ratios(measured) for target in TARGETS] == [
        {"4 MB": 3.0, "32 MB": 3.0}, {"4 MB": 10.0, "32 MB": 10.0}, {"4 MB": 10.0, "32 MB": 10.0}, {"32 MB": 1.5},
        {"256 KB": 3.0}, {"32 MB": 1.25}, {"32 MB": 1.25}, {"256 tokens": 1.5},
        {"256 tokens": 0.9}, {"32 MB": 0.7}, {"0.200 ms": pytest.approx(1.5)},
        {"a message on a cluster": pytest.approx(2.0)}, {"lamb": 0.5}, {"1.010": pytest.approx(1.02 / 1.01)},
        {"0.100 %": 2.0}, {"one worker": 0.95},
    ]  # fmt: skip


MY_FILE = """
import numpy as np
from bigbatch.comm.schedules.schedule import moved

def my_ring(size):
    rank = np.arange(size)
    for step in range(2 * size - 2):
        yield moved(rank, (rank + 1) % size, chunk=(rank - step) % size, reduce=step < size - 1)

def breaks(size):
    yield from ()
    raise KeyError("oops")

def half(size):
    yield from list(my_ring(size))[: size - 1]
"""


@pytest.fixture
def show(tmp_path, monkeypatch):
    """Call `bigbatch-exp show` in this process, in a folder with my_file.py."""
    (tmp_path / "my_file.py").write_text(MY_FILE)
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(cli, ["show", *words])


def test_show_prints_draws_proves_counts_and_animates(show, tmp_path):
    result = show("ring", "-n", "3", "--gif")
    assert result.exit_code == 0, result.output
    assert "round 1   0→1 +0   1→2 +1   2→0 +2\n          0: 1 1 2   1: 2 1 1   2: 1 2 1" in result.output
    assert "round 4   0→1 =0   1→2 =1   2→0 =2\n          0: 3 3 3   1: 3 3 3   2: 3 3 3" in result.output
    folder = tmp_path / "runs" / "show-ring-3"
    assert (folder / "rounds.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "rounds.gif").read_bytes().startswith(b"GIF89a")
    result = show("ring", "-n", "4", "--proof", "--account", "--bytes", "4KB")
    assert "proven: all 4 ranks end with every contribution once in each of 4 chunks" in result.output
    assert "round 3 rank 3 has {0, 1, 2, 3}" in result.output
    assert (
        "busiest rank: 6,144 bytes; no all-reduce can do with less than 2(p-1)/p·n = 6,144, which is 1.00 × that"
        in (result.output)
    )


def test_show_takes_anyones_generator_and_refutes_what_is_wrong(show):
    result = show("my_file.py:my_ring", "--proof")
    assert result.exit_code == 0, result.output
    assert "proven: all 4 ranks" in result.output
    result = show("my_file.py:half", "-n", "3")
    assert result.exit_code != 0
    assert "my_file.py:half over 3 ranks is no all-reduce: refuted: rank 0 misses the contribution of rank 1" in (
        str(result.exception)
    )
    raised = show("my_file.py:breaks")
    assert "breaks cannot make rounds for 4 ranks: KeyError: 'oops'" in str(raised.exception)
    assert "an animation can be followed up to 16 ranks" in str(show("ring", "-n", "17", "--gif").exception)


def test_measuring_begins_with_distinct_integers_everywhere():
    seen = {}

    class Watching(Scheduled):
        def _sum(self, tensor):
            seen.setdefault(self.transport.rank, tensor.clone())
            super()._sum(tensor)

    def work(transport):
        measure({"ring": Reducing(Watching(ring, transport))}, transport, 400_000, 0.1)

    Cluster(3).run(work)
    everyone = torch.cat([seen[rank] for rank in range(3)])
    assert len(everyone.unique()) == len(everyone) == 300_000
