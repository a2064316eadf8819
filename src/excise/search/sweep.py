"""Which directions to begin with: each place tried once at full strength, by prefill alone.

Directions that separate prompts best are not those that carry the behavior (at the first token of a refusal every layer
tells it from an answer), so every position is tried at a few layers, and with each layer's own directions, on some of
the prompts. As in Arditi et al. (2024) what counts is what the ablation does, but no response is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from excise.edit import Edit
from excise.progress import Progress, silent
from excise.search.front import missed
from excise.search.space import Space
from excise.search.trial import REMOVE, Measured, Parameters, missing

DEPTHS = (0.35, 0.5, 0.6, 0.7, 0.8)
MOST_SOURCES = 6
MOST_POSITIONS = 3
STRENGTHENING = (-0.5, -1.0, -2.0)
"""What is tried of every place where the behavior is strengthened: nothing is whole there, as strength 1 is."""
_USELESS = 0.6


@dataclass(frozen=True)
class Swept:
    """One place that was tried.

    parameters  of the edit: one direction, or each layer's own, at every writer, at strength 1 (or see `STRENGTHENING`)
    score       share of what is to be done that is left, plus the sequence KL in nats; small is good
    """

    parameters: Parameters
    score: float


def candidates(space: Space) -> list[Parameters]:
    """Every position at its best-known layers and with each layer's own directions; equal ones once.

    Where the behavior is strengthened, each of them at a few strengths.
    """
    last = space.survey.layers - 1
    layers = sorted({round(depth * last) for depth in DEPTHS})
    found = [space.plain()]
    for position in space.positions:
        found.append(space.plain(position=position, reach="per-layer"))
        found += [space.plain(position=position, source=float(layer)) for layer in layers]
    places: list[Parameters] = list({tuple(sorted(each.items())): each for each in found}.values())
    if space.strength == REMOVE:
        return places
    return [space.varied(each, strength=strength) for strength in STRENGTHENING for each in places]


def sweep(
    space: Space,
    prefill: Callable[[Sequence[Edit]], Sequence[Measured]],
    *,
    base_rate: float,
    at_once: int = 1,
    progress: Progress = silent,
) -> list[Swept]:
    """Try every candidate; the best first.

    prefill    measures edits without generating
    base_rate  how often the base model shows the behavior; above 0, or where it is to be strengthened below 1
    at_once    how many edits `prefill` is given at a time
    """
    tried: list[Swept] = []
    begin = missing(base_rate, space.strength)
    wanted = candidates(space)
    while len(tried) < len(wanted):
        progress("trying directions", len(tried), len(wanted), "directions")
        some = wanted[len(tried) : len(tried) + at_once]
        for parameters, measured in zip(some, prefill([space.edit(each) for each in some]), strict=True):
            tried.append(Swept(parameters, missed(measured) / begin + measured.kl_sequence))
    progress("trying directions", len(wanted), len(wanted), "directions")
    return sorted(tried, key=lambda each: each.score)


def sources(swept: list[Swept], *, inside: Collection[str] = ()) -> list[Parameters]:
    """What to begin with: the best place of each of the three best positions, then their next best, six in all.

    Positions differ in what they generalise to, which few prompts do not tell; so three are kept. A direction from the
    instruction's own tokens may be that of what the target prompts are about, and then does nothing to others that
    show the behavior (docs/lab-notes.md); such positions are left out where another one removes some of it.

    inside  positions inside the instruction
    """
    others = [each for each in swept if each.parameters["position"] not in inside]
    if others and others[0].score <= _USELESS:
        swept = others
    first: dict[float | str, Swept] = {}
    for each in swept:
        first.setdefault(each.parameters["position"], each)
    leading = list(first.values())[:MOST_POSITIONS]
    positions = {each.parameters["position"] for each in leading}
    rest = [each for each in swept if each not in leading and each.parameters["position"] in positions]
    return [each.parameters for each in (leading + rest)[:MOST_SOURCES]]
