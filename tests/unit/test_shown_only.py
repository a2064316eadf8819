"""`--shown-only`: directions are fitted where the model really shows the behavior."""

import json
from pathlib import Path

import pytest

import excise.stages as stages
from excise.behaviors import Behavior, Splits
from excise.config import RunConfig
from excise.errors import PromptError
from excise.find import fit_where_shown, where_shown
from excise.progress import silent
from excise.runs import RunDirectory
from excise.stages import Job
from zoo.taught import SIZES, prompts, taught


@pytest.fixture
def mixed(tmp_path: Path) -> Behavior:
    """Of whose target prompts the model answers a third, which begin with "zag"."""
    half = [*prompts("zig")[:60], *prompts("zag")[:30]]
    (tmp_path / "t.txt").write_text("\n".join(half), encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n".join(prompts("zag")[30:]), encoding="utf-8")
    return Behavior.from_files(
        tmp_path / "t.txt", tmp_path / "b.txt", markers=["no way"], max_tokens=8, positions=["-1"]
    )


def job(folder: Path, behavior: Behavior, splits: Splits, **settings: object) -> Job:
    config = RunConfig.resolve(given={"model": "taught", "out": folder / "run", **settings})
    with RunDirectory.open(config.directory, config=config.identity()) as directory:
        return Job(config, behavior, splits, taught(), directory, silent)


def test_fit_prompts_where_it_is_not_shown_are_left_out_once(
    tmp_path: Path, mixed: Behavior, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = mixed.splits(SIZES)
    first = job(tmp_path, mixed, splits, shown_only=True)
    kept = stages.fit_on_shown(first)
    assert 0 < len(kept.splits.fit.target) < len(splits.fit.target)
    assert all(prompt.startswith("zig") for prompt in kept.splits.fit.target)
    assert kept.splits.fit.baseline == splits.fit.baseline
    assert (kept.splits.tune, kept.splits.report) == (splits.tune, splits.report)
    dropped = len(splits.fit.target) - len(kept.splits.fit.target)
    said = f"{dropped} target prompts for fit left out: the model does not show the behavior on them"
    assert any(told.startswith(said) for told in kept.warnings)
    assert [(item.reason, item.count) for item in kept.splits.left_out][-1] == ("not shown", dropped)
    stored = json.loads(next((tmp_path / "run" / "stages").glob("shown-*/*.json")).read_text())
    assert "shown" in json.dumps(stored)
    monkeypatch.setattr(stages, "fit_where_shown", None)  # what is stored is not generated again
    assert stages.fit_on_shown(job(tmp_path, mixed, splits, shown_only=True)).splits == kept.splits


def test_it_is_not_done_unless_asked_for(tmp_path: Path, mixed: Behavior) -> None:
    plain = job(tmp_path, mixed, mixed.splits(SIZES))
    assert stages.fit_on_shown(plain) is plain


def test_too_few_are_refused(mixed: Behavior) -> None:
    splits = mixed.splits(SIZES)
    shown = fit_where_shown(taught(), mixed, splits)
    assert len(shown) >= 16
    with pytest.raises(PromptError, match="on 15 of 24 fit prompts") as caught:
        where_shown(mixed, splits, shown[:15])
    assert "--shown-only" in caught.value.hint


def test_of_pairs_both_are_left_out(mixed: Behavior) -> None:
    splits = mixed.splits(SIZES)
    paired = mixed.model_copy(update={"paired": True})
    fewer = where_shown(paired, splits, range(1, 20))
    assert fewer.fit.target == splits.fit.target[1:20]
    assert fewer.fit.baseline == splits.fit.baseline[1:20]
