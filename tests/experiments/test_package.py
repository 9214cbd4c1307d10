"""The built wheel: what is in it, and that it leaves Jupyter's `comm` alone."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_wheel_leaves_jupyters_comm_working(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), "."]
    source = tmp_path / "source"
    # A copy, so that the build leaves nothing behind here.
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    subprocess.run(build, cwd=source, check=True, timeout=100, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"bigbatch", "bigbatch-0.1.0.dist-info"}
    expected = {
        str(Path("bigbatch", *path.relative_to(ROOT).parts[path.relative_to(ROOT).parts[0] == "bigbatch" :]))
        for layer in ("bigbatch", "comm", "experiments")
        for pattern in ("*.py", "*.jinja")
        for path in (ROOT / layer).rglob(pattern)
    }
    assert expected <= set(names)

    place = tmp_path / "place"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place), str(wheel)]
    subprocess.run(install, check=True, timeout=60, capture_output=True)
    program = (
        "import sys, comm, ipywidgets, bigbatch.comm.errors, bigbatch.experiments.commands.main\n"
        "assert bigbatch.comm.__file__.startswith(sys.argv[1]), bigbatch.comm.__file__\n"
        "from bigbatch.experiments.pages.page import make_page\n"
        "assert make_page([]).startswith('<!DOCTYPE html>')\n"
        "widget = ipywidgets.IntSlider(value=3)\n"
        "assert comm.create_comm is not None and not comm.__name__.startswith('bigbatch')\n"
        "assert not comm.__file__.startswith(sys.argv[1]), comm.__file__\n"
        "assert widget.comm is not None\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(place)],
        env={"PYTHONPATH": str(place), "PATH": ""},
        cwd=tmp_path,
        timeout=60,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_the_wires_refuse_another_name():
    result = subprocess.run(
        [sys.executable, "-c", "import comm"], cwd=ROOT, timeout=60, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "its name is 'bigbatch.comm'" in result.stderr
