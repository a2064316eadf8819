"""Every setting, declared once: type, default, help and checks.

Command line flags, keys of a configuration file and the reference page all come from `RunConfig`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from excise.errors import InputError

Group = Literal["model", "data", "search", "output"]


def _setting(default: Any, help: str, *, group: Group, shapes_result: bool = True, **checks: Any) -> Any:
    """One setting. `shapes_result`: whether another value makes another run, which must not resume the old one."""
    extra: dict[str, JsonValue] = {"group": group, "shapes_result": shapes_result}
    return Field(default, description=help, json_schema_extra=extra, **checks)


_LOADING = ("revision", "dtype", "quantize", "device_map", "trust_remote_code", "offline", "evidence", "allow_partial")


class RunConfig(BaseModel):
    """What a run is asked to do. Frozen: what is found out on the way belongs in the run's record, not here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = _setting(..., "Model: a local directory or a Hub id.", group="model", min_length=1)
    revision: str | None = _setting(None, "Revision of a model on the Hub (branch, tag or commit).", group="model")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _setting(
        "auto", "Precision to load the model in; auto: the checkpoint's own.", group="model"
    )
    quantize: Literal["8bit", "4bit"] | None = _setting(
        None,
        "Pack the weights in memory with bitsandbytes, to search a model that is too large otherwise (8bit: LLM.int8, "
        "4bit: NF4); what is baked has the checkpoint's own precision.",
        group="model",
    )
    device_map: str | None = _setting(
        None,
        "Where to put the model: cpu, cuda, auto (spread over all devices); by default one GPU if there is one.",
        group="model",
        shapes_result=False,
    )
    trust_remote_code: bool = _setting(False, "Run Python code that comes with the model.", group="model")
    offline: bool = _setting(
        False, "Touch no network; use what is on this machine.", group="model", shapes_result=False
    )
    evidence: Path | None = _setting(
        None, "TOML file that names writers which the survey of an odd architecture cannot see.", group="model"
    )
    allow_partial: bool = _setting(
        False,
        "Go on where some writers of the residual stream could not be found or proven.",
        group="model",
        shapes_result=False,
    )

    behavior: str = _setting("refusal", "What to remove: a name (see `excise behaviors`) or a TOML file.", group="data")
    target: str | None = _setting(
        None,
        "Prompts that show the behavior: a text file (one per line), JSONL, JSON, CSV, Parquet, a Hub dataset "
        "owner/name@revision[split], or - for standard input.",
        group="data",
    )
    baseline: str | None = _setting(
        None, "Prompts that do not show it, whose answers must stay the same; as for --target.", group="data"
    )
    column: str | None = _setting(
        None, "Column that holds the prompts: texts, or conversations (lists of role and content).", group="data"
    )
    template: str | None = _setting(
        None, 'Text to fill from columns in place of --column: "Answer: {question}".', group="data"
    )
    category: str | None = _setting(
        None, "Column with the category of each prompt; by default `category`, where there is one.", group="data"
    )
    language: str | None = _setting(
        None, "Column with the language of each prompt; by default `language` or `lang`.", group="data"
    )
    near_duplicates: float | None = _setting(
        None,
        "Similarity from 0 to 1 from which on two prompts may not be in different splits; 0: any may. By default the "
        "behavior's own, 0.8 (docs/behaviors.md).",
        group="data",
        ge=0,
        le=1,
    )
    shown_only: bool = _setting(
        False, "Fit on those target prompts alone where the model shows the behavior.", group="data"
    )
    marker: tuple[str, ...] = _setting(
        (),
        "A response that holds this text shows the behavior (repeatable); replaces the behavior's own detectors.",
        group="data",
    )
    system: str | None = _setting(None, "System turn of every prompt.", group="data")
    thinking: Literal["off", "on", "both"] | None = _setting(
        None,
        "Let thinking models think before they answer: off, on, or both, where the search is without and the report is "
        "made with and without; --thinking alone: on; by default as the behavior says, mostly off.",
        group="data",
    )
    splits: tuple[int, int, int, int] = _setting(
        (128, 50, 50, 100), "Prompts per side to fit, tune, select and report on, at most.", group="data"
    )
    max_tokens: int | None = _setting(
        None, "Tokens of a response to generate when measuring; by default the behavior's own.", group="data", gt=0
    )
    report_tokens: int | None = _setting(
        None,
        "Tokens of a response to a target prompt to generate for the report; by default 512, or the behavior's own "
        "where that is more.",
        group="data",
        gt=0,
        shapes_result=False,
    )
    batch_size: int | None = _setting(
        None, "Prompts per batch; by default chosen, and halved when memory runs out.", group="data", gt=0,
        shapes_result=False,
    )  # fmt: skip
    force: bool = _setting(
        False, "Go on even if the model hardly shows the behavior.", group="data", shapes_result=False
    )

    strength: float = _setting(
        1,
        "1 removes the behavior, -1 strengthens it (by --method schedule); --preserve and --max-kl say how far to go.",
        group="search",
    )
    method: str = _setting("polish", "How to search (docs/search-methods.md).", group="search", min_length=1)
    budget: Literal["quick", "standard", "thorough"] = _setting("standard", "How long to search.", group="search")
    trials: int | None = _setting(
        None, "Trials of the search; by default as many as the budget says.", group="search", gt=0
    )
    time: str | None = _setting(
        None, "How long the search may take, such as 10m or 1h30m, in place of --budget.", group="search"
    )
    norm: Literal["none", "column"] | None = _setting(
        None, "Keep the length of the weights' columns (column) or not (none); by default searched.", group="search"
    )
    max_kl: float | None = _setting(
        None,
        "Goal: first-token KL from the base model on baseline prompts, in nats, at most this.",
        group="search",
        gt=0,
    )
    max_rate: float | None = _setting(
        None, "Goal: share of target prompts that still show the behavior, at most this.", group="search", ge=0, le=1
    )
    max_keep_fall: float = _setting(
        0.05,
        "Goal: on prompts where the behavior must stay its rate falls by at most this (0.05 is 5 points).",
        group="search",
        ge=0,
        le=1,
    )
    preserve: float | None = _setting(
        None,
        "Which edit of the front to take: 0 the one that removes most, 1 the one that changes least otherwise.",
        group="search",
        ge=0,
        le=1,
    )
    remove: float | None = _setting(
        None, "The same the other way round: 1 removes most, 0 changes least otherwise.", group="search", ge=0, le=1
    )
    rate_by: str | None = _setting(
        None,
        "Trade this score in place of the behavior rate: a key of what scorers return (docs/search-methods.md); "
        "smaller is better, -KEY turns it round.",
        group="search",
    )
    damage_by: str | None = _setting(None, "Trade this score in place of the KL; as for --rate-by.", group="search")
    scorer_module: tuple[str, ...] = _setting(
        (),
        "Python module, or file FILE.py, that registers scorers (repeatable); it is run.",
        group="search",
        shapes_result=False,
    )
    seed: int = _setting(0, "Seed of everything random.", group="search", ge=0)

    out: Path | None = _setting(
        None, "Directory of the run; by default runs/MODEL-BEHAVIOR.", group="output", shapes_result=False
    )
    score: tuple[str, ...] = _setting(
        (),
        "A further scorer or labeller to ask in the report, before and after (repeatable; docs/scorers.md).",
        group="output",
        shapes_result=False,
    )
    bake: bool = _setting(True, "Write the edited model.", group="output", shapes_result=False)

    @model_validator(mode="before")
    @classmethod
    def _method_that_strengthens(cls, values: object) -> object:
        """Where the behavior is strengthened the default method is one that can do that."""
        strengthens = isinstance(values, dict) and values.get("strength") == -1 and "method" not in values
        return {**values, "method": "schedule"} if isinstance(values, dict) and strengthens else values

    @field_validator("strength")
    @classmethod
    def _strength_is_a_sign(cls, value: float) -> float:
        if value not in (1, -1):
            raise ValueError("1 removes, -1 strengthens, and nothing else is a strength")
        return value

    @field_serializer("strength")
    def _strength_without_a_point(self, value: int | float) -> int:
        return int(value)

    @field_validator("thinking", mode="before")
    @classmethod
    def _thinking_as_a_switch(cls, value: object) -> object:
        return ("on" if value else "off") if isinstance(value, bool) else value

    @field_validator("splits", mode="before")
    @classmethod
    def _splits_from_text(cls, value: object) -> object:
        parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or len(parts) != 4:
            raise ValueError("give four numbers, such as 128,50,50,100")
        return tuple(parts)

    @field_validator("splits")
    @classmethod
    def _splits_hold_prompts(cls, splits: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        if min(splits) < 1:
            raise ValueError("every split needs at least one prompt")
        return splits

    @field_validator("time")
    @classmethod
    def _time_is_a_duration(cls, value: str | None) -> str | None:
        if value is not None and not _seconds(value) > 0:
            raise ValueError("give a time such as 90s, 10m or 1h30m")
        return value

    @model_validator(mode="after")
    def _one_dial(self) -> RunConfig:
        if self.preserve is not None and self.remove is not None:
            raise ValueError("preserve and remove are one dial: give one of them")
        return self

    @property
    def seconds(self) -> float | None:
        """`time` in seconds."""
        return None if self.time is None else _seconds(self.time)

    @property
    def thinks(self) -> bool | None:
        """Whether models may think in the search; None: as the behavior says."""
        return None if self.thinking is None else self.thinking == "on"

    @property
    def dial(self) -> float | None:
        """The weight of preserving, however it was given."""
        return self.preserve if self.remove is None else 1.0 - self.remove

    @classmethod
    def resolve(cls, *, given: Mapping[str, Any], file: Path | None = None) -> RunConfig:
        """The settings given by name, over those of a TOML file, over the defaults.

        Raises `InputError` for a file that cannot be read, an unknown setting, or a value that does not fit.
        """
        values = ({} if file is None else _read(file)) | dict(given)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            key = str(first["loc"][0]) if first["loc"] else ""
            if first["type"] == "extra_forbidden":
                raise InputError(
                    f"unknown setting '{key}'", hint=f"the settings are: {', '.join(cls.model_fields)}"
                ) from error
            if first["type"] == "missing" and len(first["loc"]) == 1:
                raise InputError(f"no {key} given", hint=f"give it on the command line or as `{key} = ...`") from error
            about = cls.model_fields[key].description
            raise InputError(f"{key}: {first['msg']} (got {first['input']!r})", hint=f"{key}: {about}") from error

    @property
    def directory(self) -> Path:
        """Where the run lives."""
        if self.out is not None:
            return self.out
        local = Path(self.model).expanduser()
        model = local.resolve().name if local.is_dir() else self.model.rpartition("/")[2]
        return Path("runs") / f"{model}-{Path(self.behavior).stem.removeprefix('demo:')}"

    def identity(self) -> dict[str, Any]:
        """The settings that shape the result, as JSON values: two runs with the same ones are the same run."""
        return {name: value for name, value in self.model_dump(mode="json").items() if describe(name)["shapes_result"]}

    def loading(self) -> dict[str, Any]:
        """What `excise.load` is told beside the model's name."""
        return {name: getattr(self, name) for name in _LOADING}

    def options(self, group: str) -> dict[str, Any]:
        """The settings of a group that differ from their defaults and shape the result, as JSON values."""
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        return {
            name: value
            for name, value in self.identity().items()
            if describe(name)["group"] == group and getattr(self, name) != defaults[name]
        }


def describe(name: str) -> dict[str, Any]:
    """What is known of a setting beside its type and default: `help`, `group`, `shapes_result`."""
    field: FieldInfo = RunConfig.model_fields[name]
    extra = field.json_schema_extra
    return {"help": field.description or "", **(extra if isinstance(extra, dict) else {})}


def _seconds(text: str) -> float:
    """`1h30m`, `10m`, `90s` or `90` in seconds; 0 for anything else."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text.strip())
    parts = (0, 0, 0) if found is None else (int(part or 0) for part in found.groups())
    return float(sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=True)))


def _read(file: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}", hint="give the path of a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not a TOML file: {error}", hint="write one setting per line: seed = 1") from error
    return {key.replace("-", "_"): value for key, value in content.items()}
