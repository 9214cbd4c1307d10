"""The cache: whatever its folder is, work goes on, or one sentence says what is wrong with its name."""

import warnings
from pathlib import Path

import pytest

from bigbatch.comm.cache import cache_folder, keep, kept_json
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.registry import Registry


def test_a_cache_that_has_no_name_of_a_folder_is_refused_by_the_variables_name(monkeypatch):
    monkeypatch.setenv("BIGBATCH_CACHE", "x" * 300)
    with pytest.raises(
        ConfigurationError, match=r"^The environment variable BIGBATCH_CACHE cannot be .*at most 255 bytes"
    ):
        cache_folder()
    monkeypatch.setenv("BIGBATCH_CACHE", "")  # numexpr 472: set and empty is how some unset a variable
    assert cache_folder().is_absolute()


@pytest.mark.parametrize("folder", ["a file", "closed"])
def test_a_cache_that_cannot_be_looked_into_costs_nothing_but_time(tmp_path, monkeypatch, folder):
    (tmp_path / "a file").write_text("")
    if folder == "closed":  # root may look into everything, so that its permissions are made up
        closed = PermissionError(13, "Permission denied")
        monkeypatch.setattr(Path, "stat", lambda *_, **__: (_ for _ in ()).throw(closed))
        monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(closed))
    with warnings.catch_warnings(record=True, action="always") as said:
        assert kept_json(tmp_path / folder / "some.json", list[str]) is None
        assert not keep(tmp_path / folder / "some.json", "[]")
    assert [str(one.message).startswith("Nothing was kept in ") for one in said] == [True]


@pytest.mark.parametrize("changed", ['["a", "c"]', '["a"]', '["a", "b"] ', ""])
def test_content_that_somebody_has_changed_is_made_anew(tmp_path, changed):
    """huggingface/swift-transformers 313: a cached tokenizer.json with a comma too much is used without a word."""
    file = tmp_path / "texts.json"
    assert keep(file, '["a", "b"]')
    assert kept_json(file, list[str]) == ["a", "b"]
    file.write_text(file.read_text().replace('["a", "b"]', changed))
    with pytest.warns(UserWarning, match=r"texts.json in the cache is damaged: its content .* It is made anew"):
        assert kept_json(file, list[str]) is None


def test_a_users_file_in_a_folder_that_cannot_be_looked_into_is_told(tmp_path, monkeypatch):
    (tmp_path / "loop.py").symlink_to(tmp_path / "loop.py")
    registry = Registry("strategy", "none", {})
    with pytest.raises(ConfigurationError, match=r"loop\.py, which should hold the strategy, cannot be read: "):
        registry.load(f"{tmp_path / 'loop.py'}:named")
    monkeypatch.setattr(Path, "stat", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(
        ConfigurationError, match=r"mine\.py, which should hold the strategy, cannot be read: Permission"
    ):
        registry.load(f"{tmp_path / 'mine.py'}:named")
