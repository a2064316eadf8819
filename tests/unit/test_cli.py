import errno
import io
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from excise.cli import app as cli
from excise.cli import options, run
from excise.cli.progress import ProgressLine, duration, size
from excise.cli.reference import reference
from excise.cli.session import Outcome, Session
from excise.cli.tables import line, ranges, writers_table
from excise.config import RunConfig
from excise.errors import ExciseError, PromptError, VerificationError

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
COMMANDS = sorted(options.COMMANDS)


def call(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, arguments)


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A command `trial` that does what the test puts into the dictionary."""
    monkeypatch.setattr(options, "COMMANDS", dict(options.COMMANDS))
    monkeypatch.setattr(cli.app, "registered_commands", list(cli.app.registered_commands))
    seen: dict[str, Any] = {"does": lambda: Outcome({"fine": True}, (line("all is [well]"),))}

    @options.command("trial", takes=options.settings("model", "data", "search", "output"), uses_models=False)
    def trial(session: Session, config: RunConfig, extra: Annotated[int, typer.Option("--extra")] = 1) -> Outcome:
        """Try."""
        seen.update(session=session, config=config, extra=extra)
        outcome = seen["does"]()
        assert isinstance(outcome, Outcome)
        return outcome

    cli.app.command("trial", cls=options.Command)(options.COMMANDS["trial"])
    return seen


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_is_documented(name: str) -> None:
    result = call(*name.split(), "--help")
    assert result.exit_code == 0
    assert "--json" in result.output
    assert f"## excise {name}\n" in DOCS.read_text(encoding="utf-8")


def test_the_commands_are_those_of_the_design() -> None:
    alone = ["run", "demo", "inspect", "find", "search", "eval", "audit", "label", "bake", "verify", "chat", "doctor"]
    under = ["behaviors", "behaviors new", "behaviors show", "behaviors validate"]
    assert sorted([*alone, *under]) == COMMANDS


def test_the_reference_page_is_up_to_date() -> None:
    assert DOCS.read_text(encoding="utf-8") == reference(), "run `make docs`"


def test_every_setting_is_a_flag_of_run() -> None:
    page = reference()
    part = page[page.index("## excise run") : page.index("## excise demo")]
    for name in set(RunConfig.model_fields) - {"model"}:
        assert f"`--{name.replace('_', '-')}" in part, name


def test_flags_reach_the_settings(trial: dict[str, Any]) -> None:
    flags = "m --seed 3 --marker a --marker b --splits 1,2,3,4 --no-bake --force --max-rate 0.1 --norm column --extra 7"
    result = call("trial", *flags.split())
    assert result.exit_code == 0, result.output
    config = trial["config"]
    assert (config.model, config.seed, config.marker, config.splits) == ("m", 3, ("a", "b"), (1, 2, 3, 4))
    assert (config.bake, config.force, config.thinking, config.max_rate, config.norm) == (
        False,
        True,
        None,
        0.1,
        "column",
    )
    assert (config.budget, trial["extra"]) == ("standard", 7)
    assert result.stdout == "all is [well]\n"


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("--thinking m", "on"),
        ("m --thinking", "on"),
        ("m --thinking --force", "on"),
        ("--thinking off m", "off"),
        ("m --thinking both", "both"),
        ("m --thinking=both", "both"),
    ],
)
def test_thinking_is_a_switch_and_a_choice(trial: dict[str, Any], words: str, value: str) -> None:
    result = call("trial", *words.split())
    assert result.exit_code == 0, result.output
    assert (trial["config"].model, trial["config"].thinking) == ("m", value)
    assert call("trial", "m", "--thinking=often").exit_code == 2


@pytest.mark.parametrize(("written", "value"), [("true", "on"), ("false", "off"), ('"both"', "both")])
def test_thinking_in_a_file_may_be_true_or_false(
    trial: dict[str, Any], tmp_path: Path, written: str, value: str
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f'model = "a"\nthinking = {written}\n', encoding="utf-8")
    assert call("trial", "--config", str(file)).exit_code == 0
    assert trial["config"].thinking == value


def test_flags_go_before_the_file(trial: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('model = "a"\nseed = 3\nbake = false\n', encoding="utf-8")
    assert call("trial", "--config", str(file), "--seed", "4").exit_code == 0
    assert (trial["config"].model, trial["config"].seed, trial["config"].bake) == ("a", 4, False)


def test_json_is_one_object_whatever_is_printed(trial: dict[str, Any]) -> None:
    def does() -> Outcome:
        print("a library talks")
        trial["session"].progress("work", 1, 1)
        return Outcome({"n": 1.5, "text": "schön"}, (line("not shown"),))

    trial["does"] = does
    result = call("trial", "m", "--json")
    assert json.loads(result.stdout) == {"n": 1.5, "text": "schön"}
    assert "a library talks" in result.stderr


def test_a_missed_goal_has_its_exit_code(trial: dict[str, Any]) -> None:
    trial["does"] = lambda: Outcome({"rate": 0.5}, missed=("the rate is 50 %, above 10 %",))
    result = call("trial", "m", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout) == {"rate": 0.5}
    assert result.stderr == "missed: the rate is 50 %, above 10 %\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (PromptError("too few", hint="more"), 1, "too few\n\nhint: more\n"),
        (VerificationError("not proven", hint="again"), 3, "not proven\n\nhint: again\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1, "no room left"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.txt"), 1, "No such file: x.txt"),
        (KeyboardInterrupt(), 130, "stopped\n\nhint: "),
        (ZeroDivisionError("oh"), 1, "unexpected error: ZeroDivisionError: oh\n\nhint: this is a bug"),
    ],
)
def test_errors_are_told_once(trial: dict[str, Any], error: BaseException, code: int, said: str) -> None:
    def fail() -> Outcome:
        raise error

    trial["does"] = fail
    result = call("trial", "m")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(said)
    assert result.stderr.count("hint:") == 1
    assert "Traceback" not in result.stderr

    as_json = call("trial", "m", "--json")
    assert as_json.exit_code == code
    assert set(json.loads(as_json.stdout)["error"]) == {"type", "message", "hint"}
    assert "Traceback" in call("trial", "m", "--debug").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["trial"],
        ["trial", "m", "--seed", "-1"],
        ["trial", "m", "--seed", "one"],
        ["trial", "m", "--nothing"],
        ["trial", "m", "--budget", "huge"],
        ["trial", "m", "--config", "nowhere.toml"],
        ["nothing"],
    ],
)
def test_wrong_usage_has_its_exit_code(trial: dict[str, Any], arguments: list[str]) -> None:
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "config" not in trial


def test_offline_is_known_before_libraries_load(trial: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    call("trial", "m", "--offline")
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("command", ["run", "inspect", "find", "search", "eval", "chat"])
def test_a_missing_model_is_one_clear_error(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = [] if command in ("inspect", "chat") else ["--behavior", "sealed"]
    result = call(command, str(tmp_path / "no-model"), *data)
    assert result.exit_code == 1
    assert "no-model" in result.stderr
    assert "hint: " in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_behaviors_are_listed() -> None:
    listed = json.loads(call("behaviors", "--json").stdout)["behaviors"]
    assert {"refusal", "demo:sealed"} <= {item["name"] for item in listed}
    assert "refusal" in call("behaviors").stdout


def test_doctor_looks_around() -> None:
    data = json.loads(call("doctor", "--json").stdout)
    assert data["versions"]["torch"]
    assert "torch" in call("doctor").stdout


def test_the_version_is_told() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", call("--version").stdout)


def test_goals_of_a_run_are_checked() -> None:
    result = {
        "after": {"rate": 0.2, "kl_first": {"mean": 0.3}},
        "leak": 1e-7,
        "leak_tolerance": 1e-4,
        "verify": {"checks": [{"name": "leak", "passed": False, "detail": "0.1"}]},
    }
    config = RunConfig(model="m", max_rate=0.1, max_kl=0.1)
    assert len(run.missed(result, config)) == 3
    assert len(run.missed(result, RunConfig(model="m", max_rate=0.3, max_kl=0.4))) == 1
    assert run.missed({**result, "verify": None}, RunConfig(model="m")) == ()
    leaking = {**result, "verify": None, "leak": 0.3, "leak_baked": 0.2}
    assert len(run.missed(leaking, RunConfig(model="m"))) == 2


class Log(io.StringIO):
    def __init__(self, *, terminal: bool = False) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_in_a_log_file_is_a_line_now_and_then() -> None:
    stream, clock = Log(), Clock()
    with ProgressLine(stream, clock=clock) as progress:
        for done in range(61):
            progress("search", done, 60, "trials")
            progress("generating", 0, 2, "rows")
            progress("generating", 1, 2, "rows")
            clock.now += 0.5
            progress("generating", 2, 2, "rows")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "search: 3/60 trials, 5 %, 1.5 trials/s, 38 s left"
    assert lines[-1] == "search: 60 trials in 30 s"
    assert len(lines) == 7
    assert not any("generating" in line for line in lines)


def test_quick_work_is_not_worth_a_line() -> None:
    stream, clock = Log(), Clock()
    with ProgressLine(stream, clock=clock) as progress:
        for done in range(10):
            clock.now += 0.1
            progress("load", done, 9)
    assert stream.getvalue() == ""


def test_bytes_and_slow_work_are_readable() -> None:
    stream, clock = Log(), Clock()
    with ProgressLine(stream, clock=clock) as progress:
        progress("bake", 0, 8_000_000_000, "B")
        clock.now = 4.0
        progress("bake", 2_000_000_000, 8_000_000_000, "B")
        progress("bake", 8_000_000_000, 8_000_000_000, "B")
        progress("train", 0, 10, "steps")
        clock.now = 104.0
        progress("train", 1, 10, "steps")
    assert stream.getvalue().splitlines() == [
        "bake: 2.0 GB of 8.0 GB, 25 %, 500.0 MB/s, 12 s left",
        "bake: 8.0 GB in 4 s",
        "train: 1/10 steps, 10 %, 1 min 40 s each, 15 min 0 s left",
    ]


def test_progress_on_a_terminal_is_one_live_line() -> None:
    stream, clock = Log(terminal=True), Clock()
    with ProgressLine(stream, clock=clock) as progress:
        progress("search", 0, 3, "trials")
        clock.now = 3.0
        progress("search", 1, 3, "trials")
        clock.now = 9.0
        progress("search", 3, 3, "trials")
    assert "search: 1/3 trials" in stream.getvalue()
    assert "search: 3 trials in 9 s" in stream.getvalue()


def test_amounts_are_said_as_people_say_them() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.4, 75, 3900)] == ["0 s", "59 s", "1 min 15 s", "1 h 5 min"]
    assert [size(count) for count in (12, 1500, 3.2e9, 5e12)] == ["12 B", "1.5 kB", "3.2 GB", "5.0 TB"]
    assert ranges([3, 1, 0, 2, 7, 9, 10]) == "0-3, 7, 9-10"


def test_writers_are_grouped_by_pattern() -> None:
    writers = [
        {
            "role": "mlp",
            "parameter": f"layers.{index}.down.weight",
            "axis": 0,
            "layer": index,
            "bias": None,
            "gain": None,
        }
        for index in range(4)
    ]
    table = writers_table(writers)
    assert table.row_count == 1
    assert list(table.columns[1].cells) == ["layers.*.down.weight"]
    assert list(table.columns[2].cells) == ["0-3"]


def test_an_excise_error_is_message_and_hint() -> None:
    assert str(ExciseError("what", hint="how")) == "what\n\nhint: how"
