import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from excise.errors import DiskFullError, InputError, OutputExistsError, PromptError
from excise.runs import RunDirectory, key, write_json, writing

CONFIG = {"model": "m", "seed": 0}


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_run_resumes_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    with RunDirectory.open(path, config=CONFIG) as run:
        assert not run.resumed
        stage = run.stage("find", {"prompts": "abc"})
        assert not stage.done
        stage.path("x.bin").write_bytes(b"1")
        stage.save({"layer": 3})
    with RunDirectory.open(path, config=CONFIG) as run:
        assert run.resumed
        assert run.stage("find", {"prompts": "abc"}).load() == {"layer": 3}
        assert run.stage("find", {"prompts": "abc"}).path("x.bin").read_bytes() == b"1"
        assert not run.stage("find", {"prompts": "abd"}).done
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["config"] == CONFIG
    assert manifest["config_hash"] == key(CONFIG)
    assert manifest["created"]
    assert "torch" in manifest["versions"]


def test_other_settings_or_other_content_are_refused(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "run", config=CONFIG):
        pass
    with pytest.raises(OutputExistsError, match="seed"):
        RunDirectory.open(tmp_path / "run", config={**CONFIG, "seed": 1})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(OutputExistsError, match="not a run"):
        RunDirectory.open(tmp_path / "mine", config=CONFIG)
    assert names(tmp_path / "mine") == ["thesis.tex"]
    (tmp_path / "file").touch()
    with pytest.raises(OutputExistsError, match="is a file"):
        RunDirectory.open(tmp_path / "file", config=CONFIG)
    (tmp_path / "run" / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(OutputExistsError, match="cannot be read"):
        RunDirectory.open(tmp_path / "run", config=CONFIG)


def test_an_empty_directory_may_be_used(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path, config=CONFIG) as run:
        assert not run.resumed


def test_two_processes_do_not_share_a_run(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path, config=CONFIG), pytest.raises(InputError, match="another process"):
        RunDirectory.open(tmp_path, config=CONFIG)
    with RunDirectory.open(tmp_path, config=CONFIG):
        pass


def test_bad_input_leaves_nothing_of_a_run_it_began(tmp_path: Path) -> None:
    def fail(error: Exception) -> None:
        with RunDirectory.open(tmp_path / "run", config=CONFIG) as run:
            run.stage("base", {}).save({})
            raise error

    with pytest.raises(PromptError):
        fail(PromptError("too few", hint="more"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(RuntimeError):
        fail(RuntimeError("a bug: what was done is kept"))
    assert (tmp_path / "run" / "manifest.json").exists()
    with pytest.raises(PromptError):
        fail(PromptError("too few", hint="more"))
    assert (tmp_path / "run" / "manifest.json").exists(), "a run that an earlier call began is kept"


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(RuntimeError), writing(tmp_path / "a.json") as scratch:  # noqa: PT012
        scratch.write_text("half", encoding="utf-8")
        raise RuntimeError
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"old": 1}
    assert names(tmp_path) == ["a.json"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError) as caught, writing(tmp_path / "a.json") as scratch:  # noqa: PT012
        scratch.write_text("half", encoding="utf-8")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "--out" in caught.value.hint
    assert names(tmp_path) == []


KILLED = """
import os, signal, sys
from excise.runs import RunDirectory
with RunDirectory.open(sys.argv[1], config={"model": "m", "seed": 0}) as run:
    run.stage("find", {}).save({"layer": 3})
    stage = run.stage("search", {})
    stage.path("study.db").write_text("half")
    stage.path(".partial-1-value.json").write_text("{")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_resumes(tmp_path: Path) -> None:
    finished = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "run")], check=False)
    assert finished.returncode == -signal.SIGKILL
    with RunDirectory.open(tmp_path / "run", config=CONFIG) as run:
        assert run.resumed
        assert run.stage("find", {}).load() == {"layer": 3}
        assert not run.stage("search", {}).done
