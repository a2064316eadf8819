"""Whether a survey is proven, and what to say where it is not."""

from __future__ import annotations

from dataclasses import dataclass

from excise.errors import SurveyError
from excise.model.survey import Survey

_SHOWN = 4
_HINT = (
    "`excise inspect` lists what was found; --allow-partial goes on all the same, "
    "and --evidence FILE can name what the survey cannot see"
)


@dataclass(frozen=True)
class Proof:
    """A survey with its leak; `tolerance` is the leak below which nothing was missed.

    fixed  what is left of a direction with a table that is not learned and that the embeddings come with; no edit of
           weights removes it, and it is the same for every prompt
    """

    name: str
    survey: Survey
    leak: float
    fixed: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether everything that writes to the residual stream is known and can be edited exactly."""
        return not self.survey.unresolved and self.leak <= self.tolerance

    @property
    def doubt(self) -> str:
        """What was seen that cannot be edited exactly, by reason and parameter; and the leak."""
        seen = _reasons(self.survey) or "nothing odd was seen"
        return f"{_covered(self.name, self.survey)}, leak {self.leak:.1e}; {seen}"

    def required(self) -> Proof:
        """The proof itself. Raises `SurveyError` where it does not hold."""
        if not self.holds:
            raise SurveyError(self.doubt, hint=_HINT)
        return self


def refusal(name: str, survey: Survey) -> SurveyError:
    """The error for a model of which a part cannot be edited exactly: the reasons, and the parameters."""
    return SurveyError(f"{_covered(name, survey)}; {_reasons(survey)}", hint=_HINT)


def _covered(name: str, survey: Survey) -> str:
    return f"{name} is not fully covered: coverage {survey.coverage:.0%}"


def _reasons(survey: Survey) -> str:
    reasons: dict[str, list[str]] = {}
    for item in survey.unresolved:
        reasons.setdefault(item.reason, []).extend(item.parameters or (f"layer {item.layer}",))
    return "; ".join(f"{reason} ({_listed(names)})" for reason, names in reasons.items())


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
