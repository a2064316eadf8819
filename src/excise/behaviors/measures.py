"""What a behavior file may say about measuring it beyond its detectors: for classifiers, judges and likelihoods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Label = Literal["behavior", "deflect", "degenerate", "comply"]
"""What a response is: the behavior; an answer to something else, or to an emptied request; broken text; an answer."""


class Classifier(BaseModel):
    """A sequence classifier that labels responses.

    model      a local directory, or a Hub id
    revision   of it on the Hub
    labels     its class names (or "0", "1", … where it has none) and what each means; others mean "comply"
    with_prompt  whether it is given the prompt too, as the first of a pair
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1)
    revision: str | None = None
    labels: Mapping[str, Label]
    with_prompt: bool = False


class Judge(BaseModel):
    """What a judging model is asked about one prompt and its response.

    rubric  when a response shows the behavior, in words; what it is given and how it answers is added
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rubric: str = Field(min_length=1)


class Margin(BaseModel):
    """Beginnings of responses that show the behavior, and of those that do not: their likelihoods are compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    behavior: tuple[str, ...]
    alternative: tuple[str, ...]

    @field_validator("behavior", "alternative")
    @classmethod
    def _hold_text(cls, continuations: tuple[str, ...]) -> tuple[str, ...]:
        if not continuations or any(not each.strip() for each in continuations):
            raise ValueError("give at least one beginning, none of them empty")
        return continuations
