"""Whether a survey is proven, and what to say where it is not."""

from __future__ import annotations

from dataclasses import dataclass

from excise.errors import SurveyError
from excise.model.survey import Survey

_SHOWN = 4


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
        reasons: dict[str, list[str]] = {}
        for item in self.survey.unresolved:
            reasons.setdefault(item.reason, []).extend(item.parameters or (f"layer {item.layer}",))
        seen = "; ".join(f"{reason} ({_listed(names)})" for reason, names in reasons.items())
        return (
            f"{self.name} is not fully covered: leak {self.leak:.1e}, coverage {self.survey.coverage:.0%}; "
            f"{seen or 'nothing odd was seen'}"
        )

    def required(self) -> Proof:
        """The proof itself. Raises `SurveyError` where it does not hold."""
        if not self.holds:
            raise SurveyError(
                self.doubt,
                hint="`excise inspect` lists what was found; --allow-partial goes on all the same, "
                "and --evidence FILE can name what the survey cannot see",
            )
        return self


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
