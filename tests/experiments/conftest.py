"""What several modules of tests need: a cache of their own, and runs to look at."""

import json
import shutil
from pathlib import Path

import pytest
from jobs import SMALL
from pages import done


@pytest.fixture
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGBATCH_CACHE", str(cache))


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Two runs in a folder as `compare` leaves it; its name has an umlaut and a space."""
    folder = tmp_path_factory.mktemp("runs") / "Läufe von heute"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIGBATCH_CACHE", str(cache))
        for name in ("ring", "naive"):
            done([name, "--simulate", "2", *SMALL, "--quiet", "--out", folder / name])
    summaries = [json.loads((folder / name / "summary.json").read_text()) for name in ("ring", "naive")]
    (folder / "summary.json").write_text(json.dumps({"runs": summaries}))
    shutil.copy(folder / "ring" / "comparison.png", folder / "ein Bild, größer.png")
    return folder
