"""Two models' labels for the same prompts, by one labeller or by several: differences, intervals, tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from excise.behaviors.measures import Label
from excise.errors import InputError
from excise.evaluation import power
from excise.evaluation.paired import Difference, McNemar, holm, mcnemar, rate_difference

Labels = Sequence[Label | None]


@dataclass(frozen=True)
class Comparison:
    """The behavior in two models' responses to the same prompts, as one labeller sees it.

    prompts     that have a label for both models; others are left out
    first, second  how many of them show the behavior
    difference  of the rates, second minus first, with its 95 % interval
    test        McNemar's
    p_holm      the exact p-value, adjusted for all labellers that were asked (Holm)
    """

    prompts: int
    first: int
    second: int
    difference: Difference
    test: McNemar
    p_holm: float

    def to_json(self) -> dict[str, Any]:
        """JSON values, the power note of the second rate among them."""
        return {
            "prompts": self.prompts,
            "first_rate": self.first / self.prompts,
            "second_rate": self.second / self.prompts,
            **self.difference.to_json(),
            **self.test.to_json(),
            "p_holm": self.p_holm,
            "power": power.describe(self.second, self.prompts),
        }


def compare(first: Mapping[str, Labels], second: Mapping[str, Labels], *, seed: int = 0) -> dict[str, Comparison]:
    """Compare two models by the name of each labeller that labelled both; p-values are adjusted for their number.

    A labeller that gave no prompt a label for both models is left out. Raises `InputError` for labels that are not
    of the same prompts.
    """
    found: dict[str, Comparison] = {}
    for name in first:
        if name in second:
            if len(first[name]) != len(second[name]):
                raise InputError(
                    f"{len(first[name])} and {len(second[name])} labels by '{name}' cannot be paired",
                    hint="compare labels of responses to the same prompts, in one order",
                )
            pairs = [
                (one == "behavior", other == "behavior")
                for one, other in zip(first[name], second[name], strict=True)
                if one is not None and other is not None
            ]
            if pairs:
                found[name] = _comparison([one for one, _ in pairs], [other for _, other in pairs], seed=seed)
    adjusted = holm([each.test.exact for each in found.values()])
    return {name: replace(each, p_holm=p) for (name, each), p in zip(found.items(), adjusted, strict=True)}


def _comparison(first: list[bool], second: list[bool], *, seed: int) -> Comparison:
    test = mcnemar(first, second)
    return Comparison(
        prompts=len(first),
        first=sum(first),
        second=sum(second),
        difference=rate_difference(first, second, seed=seed),
        test=test,
        p_holm=test.exact,
    )
