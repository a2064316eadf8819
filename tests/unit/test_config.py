from pathlib import Path

import pytest
from pydantic import ValidationError

from excise.config import RunConfig, describe
from excise.errors import InputError


def test_a_model_is_all_that_is_needed() -> None:
    config = RunConfig.resolve(given={"model": "owner/Model-1B"})
    assert config.directory == Path("runs/Model-1B-refusal")
    assert (config.budget, config.seed, config.splits) == ("standard", 0, (128, 50, 50, 100))


def test_a_local_model_names_its_run(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    config = RunConfig.resolve(given={"model": f"{tmp_path}/mine/", "behavior": "demo:sealed"})
    assert config.directory == Path("runs/mine-sealed")


def test_what_is_given_goes_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'model = "a"\nseed = 3\nmax-tokens = 9\nmarker = ["x", "y"]\nsplits = [1, 2, 3, 4]\n', encoding="utf-8"
    )
    config = RunConfig.resolve(given={"seed": 5}, file=file)
    assert (config.model, config.seed, config.max_tokens, config.marker) == ("a", 5, 9, ("x", "y"))
    assert config.splits == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "no model"),
        ({"model": "m", "sead": 1}, "unknown setting 'sead'"),
        ({"model": "m", "seed": -1}, "seed"),
        ({"model": "m", "budget": "huge"}, "budget"),
        ({"model": "m", "splits": "1,2,3"}, "four numbers"),
        ({"model": "m", "splits": "1,2,3,0"}, "at least one"),
        ({"model": "m", "max_rate": 1.5}, "max_rate"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(given: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        RunConfig.resolve(given=given)
    assert caught.value.hint


@pytest.mark.parametrize("content", [None, b"seed = ", b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_one_clear_error(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "run.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"run\.toml"):
        RunConfig.resolve(given={"model": "m"}, file=file)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        RunConfig.resolve(given={"model": "m"}).seed = 1  # type: ignore[misc]


def test_only_what_shapes_the_result_makes_another_run() -> None:
    one = RunConfig.resolve(given={"model": "m"})
    same = RunConfig.resolve(given={"model": "m", "batch_size": 4, "force": True, "out": "x", "offline": True})
    other = RunConfig.resolve(given={"model": "m", "seed": 1})
    assert one.identity() == same.identity() != other.identity()


def test_every_setting_has_a_help_text() -> None:
    for name in RunConfig.model_fields:
        assert describe(name)["help"].endswith("."), name


def test_options_are_what_was_changed_of_a_group() -> None:
    config = RunConfig(model="m", time="10m", seed=0, max_rate=0.05, target="prompts.txt")
    assert config.options("search") == {"time": "10m", "max_rate": 0.05}
