"""A second read of the report split is known, wherever it was made, and the same read again is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from excise.errors import InputError
from excise.seal import FILE, Reads, read_report

PROMPTS, OTHERS = "a" * 64, "b" * 64


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXCISE_CACHE", raising=False)


def read(directory: Path, **given: Any) -> Reads:
    directory.mkdir(parents=True, exist_ok=True)
    asked = {"digest": PROMPTS, "model": "m", "edit": "e1", "command": "excise run", **given}
    return read_report(directory, **asked)


def test_the_same_read_again_is_not_a_second_one(tmp_path: Path) -> None:
    first = read(tmp_path / "run")
    assert (first.number, first.unseen, first.note) == (1, True, "report split read once")
    assert read(tmp_path / "run") == first
    assert len(json.loads((tmp_path / "run" / FILE).read_text())["reads"]) == 1


@pytest.mark.parametrize("other", [{"edit": "e2"}, {"settings": {"tokens": 64}}, {"command": "excise eval"}])
def test_another_read_in_the_same_run_is_shown(tmp_path: Path, other: dict[str, Any]) -> None:
    read(tmp_path / "run")
    second = read(tmp_path / "run", **other)
    assert second.note == "report split read 2 times: figures are no longer of unseen prompts"
    assert not second.to_json()["unseen"]
    assert second.to_json()["reads"] == 2
    again = read(tmp_path / "run")  # resumed: its figures are still those of the first read
    assert (again.number, again.unseen) == (1, True)
    assert again.note == "report split read 2 times; these figures are of the first read"


def test_runs_beside_each_other_know_of_each_other(tmp_path: Path) -> None:
    read(tmp_path / "one")
    assert read(tmp_path / "two").number == 2
    assert read(tmp_path / "elsewhere" / "three").number == 1
    assert read(tmp_path / "four", digest=OTHERS).number == 1


def test_reads_with_another_model_are_told_apart(tmp_path: Path) -> None:
    read(tmp_path / "one")
    other = read(tmp_path / "two", model="n")
    assert (other.unseen, other.to_json()["other_models"]) == (True, 1)
    assert other.note == "report split read once (and for 1 other model)"


def test_runs_that_share_a_cache_know_of_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "cache"))
    read(tmp_path / "a" / "one")
    assert read(tmp_path / "b" / "two").number == 2
    shutil.rmtree(tmp_path / "a")  # throwing the figures away does not make the prompts unseen
    assert read(tmp_path / "c" / "three").number == 3


def test_a_read_of_no_run_is_known_by_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"digest": PROMPTS, "model": "m", "edit": "e1", "command": "excise eval"}
    assert read_report(None, **asked).number == 1
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "cache"))
    first = read_report(None, **asked)
    assert read_report(None, **asked) == first
    assert read(tmp_path / "run").number == 2


def test_a_run_that_is_moved_or_copied_is_the_same_run(tmp_path: Path) -> None:
    first = read(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert read(tmp_path / "copy") == first
    assert read(tmp_path / "moved") == first


def test_no_path_is_in_what_is_shown(tmp_path: Path) -> None:
    assert str(tmp_path) not in json.dumps(read(tmp_path / "run").to_json())


def test_a_broken_log_of_its_own_is_an_error_and_of_others_is_none(tmp_path: Path) -> None:
    read(tmp_path / "one")
    (tmp_path / "one" / FILE).write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "one")
    assert read(tmp_path / "two").number == 1


def test_a_directory_that_may_not_be_written_to_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(tmp_path / "one")

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("excise.seal.write_json", refused)
    assert read(tmp_path / "two").number == 2
    assert not (tmp_path / "two" / FILE).exists()
