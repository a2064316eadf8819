"""What checking a baked model yields: frozen, and plain enough for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One thing that was checked; `value` is what was measured, where it is a number."""

    name: str
    passed: bool
    detail: str
    value: float | None = None


@dataclass(frozen=True)
class Difference:
    """First-token logits of two models on the same prompts.

    relative  largest over prompts of ‖a − b‖ / ‖a‖, logits centred; `bound`: four times what rounding weights does
    largest   largest difference of one logit; `kl` largest KL divergence of the next token, in nats
    dtype     what both models computed in
    """

    relative: float
    bound: float
    largest: float
    kl: float
    prompts: int
    dtype: str


@dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`.

    leak               largest |v·y| / ‖y‖ of what a writer writes, over tokens and the writers whose directions are
                       removed at strength 1; None where there is no such writer, or no forward pass was made
    logits_difference  first-token logits of the baked model against the base with the edit live; None likewise
    """

    checks: tuple[Check, ...]
    leak: float | None = None
    logits_difference: Difference | None = None

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        difference = None if self.logits_difference is None else asdict(self.logits_difference)
        checks = [asdict(check) for check in self.checks]
        return {"passed": self.passed, "checks": checks, "leak": self.leak, "logits_difference": difference}
