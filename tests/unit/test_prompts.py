import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from excise.behaviors import SPLITS, Behavior, PromptSet, Source, Splits, SplitSizes
from excise.errors import PromptError

SMALL = SplitSizes(fit=4, tune=2, select=2, report=3)


def write(path: Path, prompts: list[str]) -> str:
    path.write_text("\n".join(prompts), encoding="utf-8")
    return str(path)


def numbered(word: str, count: int) -> list[str]:
    return [f"{word} number {index}" for index in range(count)]


@pytest.fixture
def behavior(tmp_path: Path) -> Behavior:
    target, baseline = write(tmp_path / "t.txt", numbered("sing", 40)), write(tmp_path / "b.txt", numbered("say", 60))
    return Behavior.from_files(target, baseline, markers=["la"])


def test_text_has_one_prompt_per_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufefffirst\r\n\r\n  second \nFIRST\nthird, “ja”".encode())
    assert Source(location=str(path)).read() == ("first", "second", "third, “ja”")


def test_tables_give_a_column(tmp_path: Path) -> None:
    rows = [{"id": 1, "ask": "one", "note": "x"}, {"id": 2, "ask": "two\nlines", "note": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "a.csv").write_text('id,ask,note\n1,one,x\n2,"two\nlines",\n', encoding="utf-8")
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        assert Source(location=str(tmp_path / name), column="ask").read() == ("one", "two\nlines"), name
        with pytest.raises(PromptError, match="no column 'asked'") as caught:
            Source(location=str(tmp_path / name), column="asked").read()
        assert "ask" in caught.value.hint
        with pytest.raises(PromptError, match="several text columns: ask, note"):
            Source(location=str(tmp_path / name)).read()
        with pytest.raises(PromptError, match="not text"):
            Source(location=str(tmp_path / name), column="id").read()


def test_the_usual_column_needs_no_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"note": "x", "prompt": "one"}\n{"note": "y", "prompt": "two"}\n', encoding="utf-8")
    assert Source(location=str(path)).read() == ("one", "two")


def test_a_dataset_directory_has_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "poems"
    folder.mkdir()
    for split in ("train", "test"):
        parquet.write_table(pa.table({"text": numbered(split, 3)}), folder / f"{split}-00000-of-00001.parquet")
    assert Source(location=str(folder)).read() == tuple(numbered("train", 3))
    assert Source(location=f"{folder}[test]").read(offline=True) == tuple(numbered("test", 3))
    assert Source(location=f"{folder}[train[:2]]").read() == tuple(numbered("train", 2))
    with pytest.raises(PromptError):
        Source(location=f"{folder}[dev]").read()
    with pytest.raises(PromptError, match="no column 'ask'"):
        Source(location=str(folder), column="ask").read()


@pytest.mark.parametrize(
    "name", ["empty.txt", "blank.txt", "latin.txt", "missing.txt", "empty.csv", "bad.jsonl", "bad.parquet"]
)
def test_what_cannot_be_read_is_one_clear_error(tmp_path: Path, name: str) -> None:
    content = {
        "empty.txt": b"",
        "blank.txt": b"\n  \n",
        "latin.txt": "schön".encode("latin-1"),
        "empty.csv": b"",
        "bad.jsonl": b'{"prompt": "one"}\n{"prom',
        "bad.parquet": b"PAR1 and then nothing",
    }
    if name in content:
        (tmp_path / name).write_bytes(content[name])
    with pytest.raises(PromptError, match=name) as caught:
        Source(location=str(tmp_path / name)).read()
    assert caught.value.hint


def test_a_hub_dataset_offline_is_an_error_and_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    with pytest.raises(PromptError, match="offline"):
        Source(location="owner/name@abc[train]").read(offline=True)


def test_splits_are_disjoint_and_repeatable(behavior: Behavior) -> None:
    splits = behavior.splits(SMALL, seed=3)
    assert splits.sizes() == {"fit": [4, 4], "tune": [2, 2], "select": [2, 2], "report": [3, 3]}
    everything = [prompt for split in SPLITS for prompt in (*splits[split].target, *splits[split].baseline)]
    assert len(set(everything)) == len(everything) == 22
    assert behavior.splits(SMALL, seed=3) == splits
    assert behavior.splits(SMALL, seed=4) != splits
    assert behavior.splits(SMALL, seed=3).digest() == splits.digest() != behavior.splits(SMALL, seed=4).digest()


def test_few_prompts_shrink_every_split_in_proportion(tmp_path: Path) -> None:
    target, baseline = write(tmp_path / "t.txt", numbered("sing", 164)), write(tmp_path / "b.txt", numbered("say", 400))
    splits = Behavior.from_files(target, baseline, markers=["la"]).splits()
    sizes = splits.sizes()
    assert [size[1] for size in sizes.values()] == [128, 50, 50, 100]
    assert sum(size[0] for size in sizes.values()) == 164
    assert sizes["fit"][0] > sizes["report"][0] > sizes["tune"][0] > 8


def test_too_few_prompts_say_how_many_are_needed(tmp_path: Path) -> None:
    target, baseline = write(tmp_path / "t.txt", numbered("sing", 47)), write(tmp_path / "b.txt", numbered("say", 400))
    with pytest.raises(PromptError, match="47 different target prompts") as caught:
        Behavior.from_files(target, baseline, markers=["la"]).splits()
    assert "48" in caught.value.hint
    assert "328" in caught.value.hint


@given(count=st.integers(48, 400), seed=st.integers(0, 5))
def test_any_number_of_prompts_is_used_up_to_the_sizes(count: int, seed: int) -> None:
    from excise.behaviors.cutting import _Pool, _shares
    from excise.behaviors.splits import MINIMUM

    sizes = SplitSizes()
    shares = _shares(count, _Pool(("target",), (Source(location="x"),), SPLITS), sizes=sizes)
    assert sum(shares.values()) == min(count, 328)
    assert all(MINIMUM[split] <= shares[split] <= sizes.of(split) for split in SPLITS)


def test_splits_that_share_a_source_share_its_prompts(tmp_path: Path) -> None:
    train, test = write(tmp_path / "train.txt", numbered("sing", 60)), write(tmp_path / "test.txt", numbered("hum", 20))
    target = {"fit": train, "tune": train, "select": train, "report": test}
    behavior = Behavior.from_files(target, write(tmp_path / "b.txt", numbered("say", 60)), markers=["la"])
    splits = behavior.splits(SMALL)
    assert all("hum" in prompt for prompt in splits.report.target)
    assert len({*splits.fit.target, *splits.tune.target, *splits.select.target}) == 8


def test_a_prompt_in_the_report_and_in_another_source_stays_held_out_where_that_is_asked_for(tmp_path: Path) -> None:
    both = numbered("hum", 5)
    train, test = write(tmp_path / "train.txt", [*numbered("sing", 8), *both]), write(tmp_path / "test.txt", both)
    target = {"fit": train, "tune": train, "select": train, "report": test}
    behavior = Behavior.from_files(target, write(tmp_path / "b.txt", numbered("say", 60)), markers=["la"])
    sizes = SplitSizes(fit=4, tune=2, select=2, report=5)
    with pytest.raises(PromptError, match=r"5 prompts of the report source .*test\.txt are also in") as caught:
        behavior.splits(sizes)
    assert "overlap" in caught.value.hint
    splits = behavior.model_copy(update={"overlap": "drop"}).splits(sizes)
    assert set(splits.report.target) == set(both)
    assert [(item.side, item.reason, item.count) for item in splits.left_out if item.side == "target"] == [
        ("target", "elsewhere", 5)
    ]
    assert "5 target prompts for fit, tune, select left out: in another source too" in splits.warnings[0]


def test_target_and_baseline_may_not_overlap(tmp_path: Path) -> None:
    target = write(tmp_path / "t.txt", [*numbered("sing", 60), "Hello  there"])
    baseline = write(tmp_path / "b.txt", [*numbered("say", 60), "hello there "])
    with pytest.raises(PromptError, match="1 prompt is in both target and baseline"):
        Behavior.from_files(target, baseline, markers=["la"]).splits()


def test_splits_check_themselves() -> None:
    sets = [PromptSet((f"t{index}",), (f"b{index}",)) for index in range(3)]
    with pytest.raises(PromptError, match="target of fit and in baseline of report"):
        Splits(*sets, PromptSet(("t9",), ("T0 ",)))


def test_prompts_are_shuffled(behavior: Behavior) -> None:
    assert behavior.splits(SMALL).fit.target != tuple(numbered("sing", 4))
