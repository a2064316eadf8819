"""Every form in which prompts may come."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from pydantic import ValidationError

from excise.behaviors import Prompt, Source
from excise.errors import PromptError

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "And now?"},
]
ROWS = [
    {"question": "one", "answers": ["a", "b"], "label": "safe", "language": "en", "level": 1},
    {"question": "two", "answers": ["c"], "label": "unsafe", "language": "de", "level": 2},
    {"question": "three", "answers": [], "label": "safe", "language": None, "level": 3},
]


def source(path: Path, **settings: Any) -> Source:
    return Source.model_validate({"location": str(path), **settings})


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "document",
    [
        ["one", "two"],
        [{"prompt": "one"}, {"note": "x", "prompt": "two"}],
        {"prompt": ["one", "two"], "id": [1, 2]},
        {"data": [{"prompt": "one"}, {"prompt": "two"}], "version": 1},
    ],
)
def test_json_holds_a_list_of_texts_or_rows_or_columns(tmp_path: Path, document: Any) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert source(path).read() == ("one", "two")


def test_json_may_have_a_document_on_each_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"prompt": "one"}\n{"prompt": "two"}\n', encoding="utf-8")
    assert source(path).read() == ("one", "two")
    path.write_text('{"prompt": "one"}', encoding="utf-8")
    assert source(path).read() == ("one",)


@pytest.mark.parametrize("content", ["3", "[1, 2]", '["one", {"prompt": "two"}]', '{"prompt": '])
def test_json_that_holds_no_prompts_is_one_clear_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(PromptError, match=r"a\.json"):
        source(path).read()


def test_conversations_end_with_the_user_and_keep_what_came_before(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"id": "x", "messages": CHAT}, {"id": "y", "messages": CHAT[1:2]}])
    expected = Prompt("And now?", turns=[("user", "Hello"), ("assistant", "Hi")], system="Be kind.")
    assert source(path).read() == (expected, "Hello")
    assert source(path, system="Be loud.").read()[1].system == "Be loud."
    assert source(path, system="Be loud.").read()[0].system == "Be kind."
    parquet.write_table(pa.Table.from_pylist([{"talk": CHAT}]), tmp_path / "a.parquet")
    assert source(tmp_path / "a.parquet").read() == (expected,)
    with pytest.raises(PromptError, match="does not end with the user's turn"):
        source(jsonl(tmp_path / "b.jsonl", [{"messages": CHAT[:3]}])).read()
    odd = [{"role": "tool", "content": "4"}, CHAT[1]]
    with pytest.raises(PromptError, match="of 'tool'"):
        source(jsonl(tmp_path / "c.jsonl", [{"messages": odd}])).read()


def test_the_same_words_after_another_conversation_are_another_prompt(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"messages": CHAT}, {"messages": CHAT[3:]}, {"messages": CHAT}])
    assert len(source(path).read()) == 2


def test_templates_are_filled_from_columns(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    filled = source(path, template="Level {level}: {question} Is it {answers[0]}? {{sure}}").read()
    assert filled == ("Level 1: one Is it a? {sure}", "Level 2: two Is it c? {sure}")  # the third has no answer
    text = tmp_path / "a.txt"
    text.write_text("one\ntwo", encoding="utf-8")
    assert source(text, template="Answer: {prompt}").read() == ("Answer: one", "Answer: two")
    with pytest.raises(PromptError, match="no column 'asked'"):
        source(path, template="{asked}").read()


@pytest.mark.parametrize("template", ["no column", "{}", "{a.__class__}", "{a[b]}", "{a!r}", "{a:>9}", "{a"])
def test_templates_hold_nothing_but_columns(template: str) -> None:
    with pytest.raises(ValidationError):
        source(Path("a.jsonl"), template=template)
    with pytest.raises(ValidationError, match="a column or a template"):
        source(Path("a.jsonl"), template="{a}", column="a")


def test_rows_are_filtered_and_their_category_and_language_kept(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    safe = source(path, column="question", where={"label": "safe"}, category="label")
    assert [(str(each), each.category, each.language) for each in safe.read()] == [
        ("one", "safe", "en"),
        ("three", "safe", None),
    ]
    assert source(path, column="question", where={"label": "safe", "level": [2, 3]}).read() == ("three",)
    assert Source.model_validate(json.loads(safe.model_dump_json())) == safe
    with pytest.raises(PromptError, match="holds no prompts where label"):
        source(path, column="question", where={"label": "odd"}).read()
    with pytest.raises(PromptError, match="no column 'kind'"):
        source(path, column="question", category="kind").read()
    with pytest.raises(PromptError, match="no column 'kind'"):
        source(path, column="question", where={"kind": "x"}).read()


@pytest.mark.parametrize(
    ("given", "expected"),
    [("one\n\ntwo\n", ("one", "two")), ('{"prompt": "one"}\n{"prompt": "two"}', ("one", "two")), ('["one"]', ("one",))],
)
def test_standard_input_is_read_once_and_kept(
    monkeypatch: pytest.MonkeyPatch, given: str, expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(given))
    assert source(Path("-")).read() == source(Path("-")).read() == expected


def test_what_is_on_the_hub_and_pinned_is_told_by_its_name(tmp_path: Path) -> None:
    commit = "0" * 40
    assert source(Path(f"owner/name:config@{commit}[train[:200]]")).pinned
    assert not source(Path("owner/name@main[train]")).pinned
    assert source(Path("owner/name")).on_hub
    assert not any(source(Path(name)).on_hub for name in ("-", "a.txt", str(tmp_path), f"{tmp_path}[test]"))
