"""Find: from prompts that show a behavior and prompts that do not, to directions."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from excise.activations import Residuals, Responses, capture_residuals, without_end
from excise.activations.moments import MomentAccumulator, Moments
from excise.behaviors import Behavior, PromptSet, Splits
from excise.behaviors.splits import MINIMUM
from excise.directions import Directions, measure_separability, method_named
from excise.errors import PromptError
from excise.evaluation import behavior_rate
from excise.model import EditableModel
from excise.model.generate import Response, end_tokens, generate
from excise.model.onset import onset_token
from excise.progress import Progress, silent


def find_directions(
    model: EditableModel,
    behavior: Behavior,
    *,
    splits: Splits | None = None,
    method: str = "mean-difference",
    seed: int = 0,
    batch_size: int | None = None,
    winsorise: float | None = None,
    progress: Progress = silent,
) -> Directions:
    """Directions of a behavior at each of its positions and every layer, with how well each separates the prompts.

    Only the `fit` split is read. Means are accumulated in fp64.

    splits     the behavior's own, made with `seed`, where they are not given
    method     "mean-difference" or "projected"; the result's `with_method` gives the other one without a second pass
    winsorise  clamp massive activations of every prompt at this quantile (see `capture_residuals`)

    Raises `InputError` for an unknown method, `PromptError` for prompts that cannot be used.
    """
    found = method_named(method)
    prompts = (splits or behavior.splits(seed=seed)).fit
    responses: tuple[Responses | None, ...] = (None, None)
    if "onset" in behavior.positions:
        responses = responses_with_onsets(model, behavior, prompts, batch_size=batch_size, progress=progress)
    target, baseline = (
        capture_residuals(
            model,
            side,
            behavior.positions,
            system=behavior.system,
            thinking=behavior.thinking,
            responses=known,
            winsorise=winsorise,
            batch_size=batch_size,
            progress=progress,
        )
        for side, known in zip((prompts.target, prompts.baseline), responses, strict=True)
    )
    return Directions.of_means(
        _moments(target).mean,
        _moments(baseline).mean,
        positions=tuple(behavior.positions),
        method=method,
        separability=measure_separability(target.values, baseline.values, found),
    )


def fit_where_shown(
    model: EditableModel,
    behavior: Behavior,
    splits: Splits,
    *,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> tuple[int, ...]:
    """Which of the fit split's target prompts the model shows the behavior on, as it stands; their responses are
    generated until that is decided. `Splits.with_fit_targets` makes splits of it.
    """
    result = behavior_rate(
        model, splits.fit.target, behavior, batch_size=batch_size, stop_early=True, progress=progress
    )
    return tuple(index for index, label in enumerate(result.labels) if label == "behavior")


def where_shown(behavior: Behavior, splits: Splits, shown: Sequence[int]) -> Splits:
    """The splits with those target prompts alone to fit on; `left_out` says how many are not among them.

    Raises `PromptError` where fewer are left than a fit may be made on.
    """
    count = len(splits.fit.target)
    least = min(count, MINIMUM["fit"])
    if len(shown) < least:
        raise PromptError(
            f"the model shows '{behavior.name}' on {len(shown)} of {count} fit prompts: too few to fit on those alone",
            hint=f"at least {least} are needed: give other or more prompts (--splits), or do without --shown-only",
        )
    return splits.with_fit_targets(shown, paired=behavior.paired)


def responses_with_onsets(
    model: EditableModel,
    behavior: Behavior,
    prompts: PromptSet,
    *,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> tuple[Responses, Responses]:
    """The model's own responses to target and baseline prompts, with where the behavior begins in each.

    A response that does not show the behavior is read where it could have been shown: at its end, or before its first
    token where most responses that show it begin with it.
    """
    inside = model.template.opens_thinking(thinking=behavior.thinking)
    sides = [
        generate(
            model,
            side,
            system=behavior.system,
            thinking=behavior.thinking,
            max_tokens=behavior.max_tokens,
            batch_size=batch_size,
            progress=progress,
        )
        for side in (prompts.target, prompts.baseline)
    ]
    onsets = [[onset_token(each, behavior, model.template, inside=inside) for each in side] for side in sides]
    begins = [place for place in onsets[0] if place is not None]
    at_once = not begins or median(begins) == 0
    ends = end_tokens(model)

    def known(side: Sequence[Response], places: Sequence[int | None]) -> Responses:
        tokens = tuple(tuple(without_end(response.tokens, ends)) for response in side)
        silent_at = [0 if at_once else len(row) for row in tokens]
        return Responses(
            tokens, tuple(other if place is None else place for place, other in zip(places, silent_at, strict=True))
        )

    return known(sides[0], onsets[0]), known(sides[1], onsets[1])


def _moments(residuals: Residuals) -> Moments:
    accumulator = MomentAccumulator()
    for row in residuals.values.split(16):
        accumulator.update(row)
    return accumulator.result()
