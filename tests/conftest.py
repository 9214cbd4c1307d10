"""Real jobs under a deadline: nothing hangs for ever, and nothing is left behind."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything can import a library that reads it: no test asks the hub

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bodies import plain_loop
from jobs import RANK_VARIABLES, EveryFigure, Job, Outcome, Run, Start

torch.set_num_threads(1)  # several threads on small matrices are many times slower, the more so beside other jobs


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with what a plain loop in one process ends with; it takes seconds, so it runs once."""
    path = tmp_path_factory.mktemp("oracle") / "oracle.pt"
    torch.save(plain_loop(), path)
    return path


@pytest.fixture
def start(tmp_path: Path, cache: Path) -> Iterator[Start]:
    """Start a command in a folder of its own."""
    jobs: list[Job] = []

    def begin(*command: object, **environment: str) -> Job:
        inherited = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
        path = f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}"
        variables = {**inherited, "PATH": path, "OMP_NUM_THREADS": "1", "BIGBATCH_CACHE": str(cache), **environment}
        jobs.append(Job([str(word) for word in command], tmp_path, variables))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.kill()


@pytest.fixture
def run(start: Start) -> Run:
    """Run a command to its end, within a deadline, and see that no process is left."""

    def complete(*command: object, deadline: float = 60, **environment: str) -> Outcome:
        job = start(*command, **environment)
        outcome = job.wait(deadline)
        assert job.gone(), f"processes {job.alive()} were left behind by {command}"
        return outcome

    return complete


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "every_figure" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")
    items.sort(key=lambda item: "every_figure" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session", autouse=True)
def figures_beside(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache: Path
) -> Iterator[tuple[EveryFigure, threading.Thread]]:
    """Begins with the first test, if any test looks at figures."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "BIGBATCH_CACHE": str(cache)}
    figures = EveryFigure(tmp_path_factory.mktemp("figures"), variables)
    thread = threading.Thread(target=figures.make, daemon=True)
    asked = any("every_figure" in getattr(item, "fixturenames", ()) for item in request.session.items)
    if asked:
        thread.start()
    yield figures, thread
    if asked:
        figures.job.kill()


@pytest.fixture(scope="session")
def every_figure(figures_beside: tuple[EveryFigure, threading.Thread]) -> EveryFigure:
    figures, thread = figures_beside
    thread.join()
    assert figures.finished is not None, f"figures could not be made: {figures.interrupted}"
    return figures
