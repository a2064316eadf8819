"""Find: from prompts that show a behavior and prompts that do not, to directions."""

from __future__ import annotations

from excise.activations import Residuals, capture_residuals
from excise.activations.moments import MomentAccumulator, Moments
from excise.behaviors import Behavior, Splits
from excise.directions import Directions, measure_separability, method_named
from excise.model import EditableModel
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
    target, baseline = (
        capture_residuals(
            model,
            side,
            behavior.positions,
            system=behavior.system,
            thinking=behavior.thinking,
            winsorise=winsorise,
            batch_size=batch_size,
            progress=progress,
        )
        for side in (prompts.target, prompts.baseline)
    )
    return Directions.of_means(
        _moments(target).mean,
        _moments(baseline).mean,
        positions=tuple(behavior.positions),
        method=method,
        separability=measure_separability(target.values, baseline.values, found),
    )


def _moments(residuals: Residuals) -> Moments:
    accumulator = MomentAccumulator()
    for row in residuals.values.split(16):
        accumulator.update(row)
    return accumulator.result()
