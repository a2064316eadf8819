"""Evidence for odd architectures: writers that somebody vouches for, in a small TOML file.

    [[writer]]
    parameter = "model.layers.*.mixer.fused_out"   # * stands for one part of a name: the index of a layer, of an expert
    axis = 1                                       # which of its axes is the residual one
    role = "mixer"                                 # attention, mlp, expert, mixer or embedding
    expert_axis = 0                                # optional: the axis that counts experts in a bank
    bias = "model.layers.*.mixer.fused_bias"       # optional: what is added to the product

Nothing is believed: the probe proves a survey with evidence like any other.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from excise.edit import Role
from excise.errors import InputError


class Evidence(BaseModel):
    """One `[[writer]]` of an evidence file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameter: str = Field(min_length=1)
    axis: int = Field(ge=0)
    role: Role
    expert_axis: int | None = Field(None, ge=0)
    bias: str | None = None


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    writer: tuple[Evidence, ...] = Field(min_length=1)


def read_evidence(path: Path) -> tuple[Evidence, ...]:
    """The entries of an evidence file. Raises `InputError` for one that cannot be read or says something unknown."""
    hint = "see docs/architectures.md for what an evidence file looks like"
    try:
        return _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).writer
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", hint=hint) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a TOML file: {error}", hint=hint) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where}: {first['msg']}", hint=hint) from error


def expand(
    evidence: Sequence[Evidence], parameters: Mapping[str, Tensor], *, hidden: int
) -> Iterator[tuple[str, Evidence]]:
    """Every parameter that an entry names, with the entry as it holds for it alone.

    Raises `InputError` for an entry that names no parameter, or an axis that is not of the stream's width.
    """
    for entry in evidence:
        pattern = re.compile(re.escape(entry.parameter).replace(r"\*", r"([^.]+)"))
        found = [(name, match) for name in parameters if (match := pattern.fullmatch(name))]
        if not found:
            raise InputError(
                f"the evidence names {entry.parameter}, and the model has no such parameter",
                hint="the names are those of the loaded model: `excise inspect` lists some",
            )
        for name, match in found:
            yield name, _checked(name, entry, match.groups(), parameters, hidden)


def _checked(
    name: str, entry: Evidence, parts: Sequence[str], parameters: Mapping[str, Tensor], hidden: int
) -> Evidence:
    shape = tuple(parameters[name].shape)
    if entry.axis >= len(shape) or shape[entry.axis] != hidden:
        raise InputError(
            f"the evidence says that axis {entry.axis} of {name} is the residual one; its shape is {shape}",
            hint=f"the residual stream is {hidden} wide",
        )
    changes: dict[str, Any] = {"parameter": name}
    if entry.bias is not None:
        changes["bias"] = _filled(entry.bias, parts)
        if changes["bias"] not in parameters:
            raise InputError(
                f"the evidence names the bias {changes['bias']}, and the model has no such parameter",
                hint="a * in the bias stands for the same part as in the parameter",
            )
    return entry.model_copy(update=changes)


def _filled(pattern: str, parts: Sequence[str]) -> str:
    remaining = iter(parts)
    return "".join(next(remaining, "*") if piece == "*" else piece for piece in re.split(r"(\*)", pattern))
