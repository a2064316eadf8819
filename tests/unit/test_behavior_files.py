"""`excise behaviors`: show, validate and new; and markers from responses."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from excise.behaviors import Behavior, SplitSizes
from excise.behaviors.check import check
from excise.behaviors.markers import phrases, propose_markers
from excise.cli import app as cli
from excise.cli import session as cli_session
from excise.config import RunConfig
from excise.model import EditableModel
from zoo.taught import prompts, taught

SMALL = SplitSizes(fit=8, tune=4, select=4, report=4)
DETECTORS = '[detectors]\nmarkers = ["no way"]\n'


def call(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, arguments)


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for kind in ("zig", "zag"):
        write(tmp_path / f"{kind}.txt", prompts(kind))
    return tmp_path


def test_a_group_lists_without_a_command_and_hands_its_flags_to_none() -> None:
    assert "false-refusal" in call("behaviors").stdout
    wrong = call("behaviors", "--json", "show", "sealed")
    assert wrong.exit_code == 2
    assert "go behind `show`" in wrong.output


def test_show_says_what_a_behavior_is_made_of() -> None:
    text = call("behaviors", "show", "false-refusal").stdout
    for part in ("Paul/XSTest", "only label: unsafe", "Keep prompts", "tune, select", "max_tokens", "pattern"):
        assert part in text, part
    data = json.loads(call("behaviors", "show", "sycophancy", "--json").stdout)
    assert data["paired"] is True
    assert Behavior.model_validate({key: value for key, value in data.items() if key != "file"}) == Behavior.load(
        "sycophancy"
    )
    unknown = call("behaviors", "show", "sing", "--json")
    assert (unknown.exit_code, json.loads(unknown.stdout)["error"]["type"]) == (1, "BehaviorError")


def test_a_good_file_is_valid(folder: Path) -> None:
    path = write(folder / "a.toml", ['description = "x"', 'target = "zig.txt"', 'baseline = "zag.txt"', DETECTORS])
    result = call("behaviors", "validate", str(path), "--splits", "8,4,4,4", "--json")
    data = json.loads(result.stdout)
    assert (result.exit_code, data["valid"], data["splits"]["fit"]) == (0, True, [8, 8])
    assert all(finding["kind"] == "warning" for finding in data["findings"])


@pytest.mark.parametrize(
    ("lines", "about", "said"),
    [
        (["target = "], "a.toml", "not a TOML file"),
        (['target = "zig.txt"', 'colour = "red"', DETECTORS], "colour", "the keys are"),
        (['target = "zig.txt"', 'colour = "red"', DETECTORS], "baseline", "required"),
        (['target = "zig.txt"', 'baseline = "zag.txt"', '[detectors]\npatterns = ["("]'], "detectors", "expression"),
        (['target = "zig.txt"', 'baseline = "zog.txt"', DETECTORS], "zog.txt", "no prompt file"),
        (['target = "zig.txt"', 'baseline = "zig.txt"', DETECTORS], "splits", "both target and baseline"),
        (['target = "few.txt"', 'baseline = "zag.txt"', DETECTORS], "splits", "too few"),
        (['target = {location = "zig.txt", column = "a", template = "{a}"}', DETECTORS], "target", "or a template"),
        (['[contrast]\nprompts = "zig.txt"', DETECTORS], "contrast", "the same"),
    ],
)
def test_what_is_wrong_with_a_file_is_found(folder: Path, lines: list[str], about: str, said: str) -> None:
    write(folder / "few.txt", ["zig one", "zig two"])
    path = write(folder / "a.toml", lines)
    found = check(path, sizes=SMALL)
    assert not found.valid
    assert any(about in each.about and said in each.message for each in found.findings if each.kind == "error")
    result = call("behaviors", "validate", str(path), "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["valid"] is False
    assert "missed: " in result.stderr


def test_every_error_is_told_at_once_and_doubts_are_warnings(folder: Path) -> None:
    path = write(folder / "a.toml", ['target = "zog.txt"', 'baseline = "zug.txt"', DETECTORS])
    kinds = [(each.kind, each.about) for each in check(path).findings]
    assert [kind for kind, _ in kinds] == ["error", "error", "warning"]
    assert kinds[2] == ("warning", "description")
    path = write(folder / "b.toml", ['description = "x"', 'target = "a/b[train]"', 'baseline = "zag.txt"', DETECTORS])
    found = check(path, offline=True)
    assert found.valid
    assert found.sizes is None
    assert [each.message.split(":")[0] for each in found.findings] == ["no revision", "not read"]


def test_detectors_of_another_behavior_may_be_named(folder: Path) -> None:
    one = write(folder / "one.toml", ['target = "zig.txt"', 'baseline = "zag.txt"', DETECTORS])
    for name in ("refusal", "one.toml"):
        other = write(folder / "two.toml", ['target = "zig.txt"', 'baseline = "zag.txt"', f'detectors = "{name}"'])
        expected = Behavior.load(one if name == "one.toml" else name).detectors
        assert Behavior.load(other).detectors == expected
    write(folder / "two.toml", ['detectors = "two.toml"'])
    assert "from itself" in check(folder / "two.toml").findings[0].message


def test_a_new_file_needs_markers_alone(folder: Path) -> None:
    path = folder / "sub" / "new.toml"
    arguments = ["behaviors", "new", str(path), "--target", str(folder / "zig.txt"), "--baseline"]
    assert call(*arguments, str(folder / "zag.txt"), "--description", 'Says "no"').exit_code == 0
    (finding,) = [each for each in check(path, sizes=SMALL).findings if each.kind == "error"]
    assert "no marker" in finding.message
    path.write_text(path.read_text().replace("markers = []", 'markers = ["no"]'), encoding="utf-8")
    behavior = Behavior.load(path)
    assert behavior.description == 'Says "no"'
    assert behavior.splits(SMALL).sizes()["fit"] == [8, 8]
    again = call(*arguments, str(folder / "zag.txt"), "--json")
    assert (again.exit_code, json.loads(again.stdout)["error"]["type"]) == (1, "OutputExistsError")


def test_a_new_file_without_anything_is_a_form_to_fill_in(folder: Path) -> None:
    assert call("behaviors", "new", str(folder / "new.toml"), "--marker", "no way").exit_code == 0
    assert [each.about for each in check(folder / "new.toml").findings] == [
        str(folder / "target.txt"),
        str(folder / "baseline.txt"),
    ]
    assert call("behaviors", "new", str(folder / "new.txt")).exit_code == 1
    assert call("behaviors", "new", str(folder / "b.toml"), "--target", "a.txt").exit_code == 1
    assert call("behaviors", "new", str(folder / "b.toml"), "--prompts", "a.txt").exit_code == 1


def test_a_new_contrast(folder: Path) -> None:
    systems = ("--target-system", "Say no.", "--baseline-system", "Say yes.")
    path = folder / "new.toml"
    new = call("behaviors", "new", str(path), "--prompts", str(folder / "zig.txt"), *systems, "--marker", "no")
    assert new.exit_code == 0
    behavior = Behavior.load(path)
    assert behavior.paired
    assert [behavior.target["fit"].system, behavior.baseline["fit"].system] == ["Say no.", "Say yes."]


def test_markers_are_proposed_from_the_model_s_own_responses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(self: object, config: RunConfig) -> EditableModel:
        return taught()

    monkeypatch.setattr(cli_session.Session, "load_model", load_model)
    sources = ("--target", str(folder / "zig.txt"), "--baseline", str(folder / "zag.txt"), "--splits", "24,12,12,12")
    result = call(
        "behaviors", "new", str(folder / "new.toml"), *sources, "--model", "taught", "--max-tokens", "8", "--json"
    )
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["markers"] == ["no way"]
    assert data["proposal"]["target"] > 0.8
    assert data["proposal"]["baseline"] < 0.1
    assert Behavior.load(folder / "new.toml").detectors.markers == ("no way",)


def test_phrases_do_not_run_over_the_end_of_a_sentence() -> None:
    found = set(phrases("I’m sorry, but no. It is 夏天"))
    assert {"i'm", "i'm sorry, but no", "it is 夏天", "夏天"} <= found
    assert not any("no. it" in phrase for phrase in found)


def responses(count: int, openings: list[str], topic: str, seed: int) -> list[tuple[str, str]]:
    generator = random.Random(seed)
    words = ["bread", "river", "lamp", "stone", "song", "wheel", "cloud", "salt"]
    rows = []
    for _ in range(count):
        body = " ".join(generator.choices(words, k=8))
        rows.append((f"Tell me of {topic}", f"{generator.choice(openings)} The {topic} {body}."))
    return rows


def test_few_markers_cover_most_and_the_topic_is_none() -> None:
    target = responses(60, ["I must decline, friend.", "My oath forbids it.", "Well."], "dragons", 0)
    baseline = responses(60, ["Gladly.", "Well."], "horses", 1)
    unseen = [[text for _, text in responses(40, openings, topic, 2)] for openings, topic in (
        (["I must decline, friend.", "My oath forbids it."], "dragons"), (["Gladly.", "Well."], "horses"),
    )]  # fmt: skip
    found = propose_markers(target, baseline, held_out=(unseen[0], unseen[1]))
    assert len(found.markers) == 2
    assert {marker.text.split()[0] for marker in found.markers} <= {"i", "must", "decline", "my", "oath", "forbids"}
    assert found.target == 1.0
    assert found.baseline == 0.0


def test_what_does_not_hold_on_unseen_responses_is_no_marker() -> None:
    target = responses(40, ["I must decline, friend."], "dragons", 0)
    baseline = responses(40, ["Gladly."], "horses", 1)
    assert propose_markers(target, baseline, held_out=(["Gladly."] * 9, ["Gladly."] * 9)).markers == ()
    assert propose_markers(target, target, held_out=(["I must decline"], ["Gladly."])).markers == ()
    assert propose_markers([("a", "")], [("b", "")], held_out=([""], [""])).markers == ()
