"""No prompt helps to choose what it is then used to judge: near-duplicates, pairs, prompts to keep, contamination."""

import json
from pathlib import Path
from typing import Any

import pytest

from excise.behaviors import SPLITS, Behavior, Prompt, PromptSet, Splits, SplitSizes
from excise.behaviors.duplicates import Similarity
from excise.errors import BehaviorError, PromptError

SMALL = SplitSizes(fit=8, tune=3, select=3, report=4)
TOWNS = [one + two for one in ("Arle", "Brim", "Corv", "Dask", "Elm") for two in ("holt", "wick", "gate", "ford")]


def questions(what: str) -> list[str]:
    return [f"{what} of the old town {town}?" for town in TOWNS]


def write(path: Path, prompts: list[str]) -> str:
    path.write_text("\n".join(prompts), encoding="utf-8")
    return str(path)


def behavior(**content: Any) -> Behavior:
    return Behavior.model_validate({"name": "test", "detectors": {"markers": ["x"]}, **content})


def everywhere(splits: Splits) -> list[tuple[str, Any]]:
    return [
        (split, prompt) for split in SPLITS for side in ("target", "baseline", "keep")
        for prompt in getattr(splits[split], side)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ("How do I bake a sourdough bread at home?", "How do I bake sourdough bread at home", True),
        ("Write a poem about the sea.", "Please write a poem about the sea!", True),
        ("Explain how rainbows form in simple words", "Explain in simple words how rainbows form", True),
        ("What is the capital of France?", "What is the capital of Spain?", False),
        ("How do I open a Python file?", "How do I open a bottle?", False),
        ("Count up to 12 in steps of one.", "Count up to 13 in steps of one.", False),
    ],
)
def test_near_is_what_says_the_same(one: str, other: str, near: bool) -> None:
    similarity = Similarity([*questions("Name the mayor"), *questions("What is the capital"), one, other])
    assert bool(similarity.near(similarity.vectors([one]), similarity.vectors([other]))[0, 0]) is near


def test_near_duplicates_do_not_end_in_different_splits(tmp_path: Path) -> None:
    asked = [*questions("Name the mayor"), *(f"Please, {each}" for each in questions("Name the mayor"))]
    target, baseline = write(tmp_path / "t.txt", asked), write(tmp_path / "b.txt", questions("Describe the river"))
    found = behavior(target=target, baseline=baseline)
    splits = found.splits(SMALL)
    used = [prompt.removeprefix("Please, ") for split in SPLITS for prompt in splits[split].target]
    assert len(used) == len(set(used)) == 18
    (left_out,) = splits.left_out
    assert (left_out.side, left_out.reason, left_out.splits) == ("target", "near", SPLITS)
    assert left_out.count > 0
    assert str(left_out.count) in splits.warnings[0]
    assert "Name" not in json.dumps(left_out.to_json())
    loose = found.with_options(near_duplicates=0.0).splits(SMALL)
    assert loose.left_out == ()
    twice = [prompt.removeprefix("Please, ") for split in SPLITS for prompt in loose[split].target]
    assert len(set(twice)) < len(twice)


def test_repetitions_within_a_source_are_counted(tmp_path: Path) -> None:
    target = write(tmp_path / "t.txt", [*questions("Name the mayor"), *questions("NAME  the mayor")[:5]])
    splits = behavior(target=target, baseline=write(tmp_path / "b.txt", questions("Describe the river"))).splits(SMALL)
    assert [(item.reason, item.count) for item in splits.left_out] == [("repeated", 5)]
    assert splits.warnings == ()


@pytest.mark.parametrize(
    "moved", ["Name the mayor of the old town Elmford?", "please name  the mayor of the old town ELMFORD"]
)
@pytest.mark.parametrize("into", ["fit", "select"])
def test_a_prompt_moved_from_the_report_makes_the_run_refuse(tmp_path: Path, moved: str, into: str) -> None:
    mayors = questions("Name the mayor")
    parts = {"fit": mayors[:8], "tune": mayors[8:11], "select": mayors[11:14], "report": mayors[14:]}
    baseline = write(tmp_path / "b.txt", questions("Describe the river"))

    def targets() -> dict[str, str]:
        return {split: write(tmp_path / f"{split}.txt", prompts) for split, prompts in parts.items()}

    assert behavior(target=targets(), baseline=baseline).splits(SMALL).warnings == ()
    parts[into] = [moved, *parts[into]]
    sizes = SplitSizes(fit=8, tune=3, select=3, report=6)
    with pytest.raises(
        PromptError, match=rf"report source .*report\.txt is also in .*{into}\.txt, for {into}"
    ) as caught:
        behavior(target=targets(), baseline=baseline).splits(sizes)
    assert "elmford" in caught.value.message.lower()
    dropped = behavior(target=targets(), baseline=baseline, overlap="drop").splits(sizes)
    assert moved not in dropped[into].target
    assert "Name the mayor of the old town Elmford?" in dropped.report.target


def test_a_report_prompt_on_another_side_of_another_split_is_refused(tmp_path: Path) -> None:
    mayors, rivers = questions("Name the mayor"), questions("Describe the river")
    target = {split: write(tmp_path / f"t_{split}.txt", mayors[:12]) for split in ("fit", "tune", "select")}
    target |= {split: target["fit"] for split in target} | {"report": write(tmp_path / "report.txt", mayors[14:])}
    baseline = write(tmp_path / "b.txt", [*rivers, mayors[15]])
    with pytest.raises(PromptError, match="1 prompt is in both target and baseline"):
        behavior(target=target, baseline=baseline).splits(SMALL)


def test_sides_that_are_alike_across_splits_are_said(tmp_path: Path) -> None:
    mayors = questions("Name the mayor")
    target = write(tmp_path / "t.txt", mayors)
    alike = [f"Please, {one}" for one in mayors]
    baseline = write(tmp_path / "b.txt", alike[::-1])
    (warning,) = behavior(target=target, baseline=baseline).splits(SMALL).warnings
    assert "paired = true" in warning
    write(tmp_path / "b.txt", alike)
    assert behavior(target=target, baseline=baseline, paired=True).splits(SMALL).warnings == ()


def test_pairs_stay_together(tmp_path: Path) -> None:
    mayors, rivers = questions("Name the mayor"), questions("Describe the river")
    target, baseline = write(tmp_path / "t.txt", mayors), write(tmp_path / "b.txt", rivers)
    splits = behavior(target=target, baseline=baseline, paired=True).splits(SMALL)
    for split in SPLITS:
        assert [one.split()[-1] for one in splits[split].target] == [one.split()[-1] for one in splits[split].baseline]
    rows = [{"loud": one, "quiet": other} for one, other in zip(mayors, rivers, strict=True)]
    table = tmp_path / "pairs.jsonl"
    table.write_text("\n".join(map(json.dumps, [*rows, {"loud": "alone", "quiet": None}])), encoding="utf-8")
    columns = {
        side: {"location": str(table), "column": name} for side, name in (("target", "loud"), ("baseline", "quiet"))
    }
    assert behavior(**columns, paired=True).splits(SMALL) == splits
    write(tmp_path / "b.txt", rivers[:-1])
    with pytest.raises(PromptError, match="20 and 19 rows"):
        behavior(target=target, baseline=baseline, paired=True).splits(SMALL)


def load(folder: Path, text: str) -> Behavior:
    (folder / "test.toml").write_text(f'{text}\n[detectors]\nmarkers = ["x"]\n', encoding="utf-8")
    return Behavior.load(folder / "test.toml")


def test_one_set_of_prompts_under_two_system_prompts_is_a_contrast(tmp_path: Path) -> None:
    write(tmp_path / "p.txt", questions("Name the mayor"))
    found = load(tmp_path, '[contrast]\nprompts = "p.txt"\ntarget_system = "Rhyme."\nbaseline_system = "Do not rhyme."')
    splits = found.splits(SMALL)
    assert splits.warnings == ()
    for split in SPLITS:
        asked = splits[split]
        assert list(map(str, asked.target)) == list(map(str, asked.baseline))
        assert {Prompt.of(one).system for one in asked.target} == {"Rhyme."}
        assert {Prompt.of(one).system for one in asked.baseline} == {"Do not rhyme."}
    assert len({str(prompt) for _, prompt in everywhere(splits)}) == 18
    alone = found.model_copy(update={"paired": False})
    with pytest.raises(PromptError, match="in both target and baseline") as caught:
        alone.splits(SMALL)
    assert "paired" in caught.value.hint


def test_columns_and_templates_make_a_contrast_too(tmp_path: Path) -> None:
    rows = [{"q": f"{one}", "wrong": [f"It is {one.split()[-1]}."]} for one in questions("Name the mayor")]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    text = '[contrast]\nprompts = "p.jsonl"\ntarget_template = "{q} {wrong[0]} Right?"\nbaseline_column = "q"'
    splits = load(tmp_path, text).splits(SMALL)
    assert splits.fit.target[0].startswith(str(splits.fit.baseline[0]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[contrast]\nprompts = "p.txt"', "the same"),
        ('[contrast]\ntarget_system = "Rhyme."', "prompts"),
        ('[contrast]\nprompts = "p.txt"\nsystem = "Rhyme."', "unknown key 'system'"),
        ('target = "t.txt"\n[contrast]\nprompts = "p.txt"\ntarget_system = "Rhyme."', "'target' too"),
    ],
)
def test_a_contrast_that_is_none_says_why(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BehaviorError, match=said):
        load(tmp_path, text)


def test_prompts_to_keep_are_apart_from_all_others(tmp_path: Path) -> None:
    target, baseline = (
        write(tmp_path / "t.txt", questions("Name the mayor")),
        write(tmp_path / "b.txt", questions("Describe the river")),
    )
    keep = write(tmp_path / "k.txt", questions("Burn the bridge"))
    found = behavior(target=target, baseline=baseline, keep={"select": keep, "report": keep})
    splits = found.splits(SMALL)
    assert [len(splits[split].keep) for split in SPLITS] == [0, 0, 3, 4]
    assert splits.sizes()["report"] == [4, 4, 4]
    assert splits.sizes()["fit"] == [8, 8, 0]
    assert len({prompt for _, prompt in everywhere(splits)}) == 18 + 18 + 7
    without = behavior(target=target, baseline=baseline).splits(SMALL)
    assert (without.fit, without.sizes()["report"]) == (splits.fit, [4, 4])
    assert without.digest()["fit"] == splits.digest()["fit"]
    assert without.digest()["report"] != splits.digest()["report"]
    with pytest.raises(PromptError, match="in both target and keep"):
        behavior(target=target, baseline=baseline, keep=write(tmp_path / "k.txt", questions("Name the mayor"))).splits(
            SMALL
        )
    with pytest.raises(PromptError, match="keep of report"):
        Splits(*(PromptSet((f"t{n}",), (f"b{n}",)) for n in range(3)), PromptSet(("t9",), ("b9",), ("T0",)))
