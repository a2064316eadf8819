"""The space that is searched: a compact strength schedule and one choice of direction.

    position, method, norm   categories; which direction vectors, which norm mode
    reach                    "one": one direction for every writer; "per-layer": each layer's own
    source                   layer the one direction is taken from, interpolated between layers
    taper                    share of the depth over which strengths fall to zero outside their range
    ROLE.strength            in steps of 0.05, so that full strength 1 is hit exactly; below 0 to strengthen
    ROLE.start, ROLE.share   the range: from `start`, over `share` of the depth above it

Roles are those the survey found, embeddings left out.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from excise.directions import Directions, Everywhere, known_methods
from excise.edit import DirectionsLike, Edit, Norm, Plateau, Role, Schedule
from excise.model import Survey
from excise.search.trial import REMOVE, Parameters

STRENGTH_STEP = 0.05
MOST_STRENGTH = 2.0
_FIRST_SOURCE, _LAST_SOURCE = 0.2, 0.95


class Space:
    """The parameters of a model's candidates, their ranges, and the edit that each set of values stands for.

    norm       fixes the norm mode; None lets it be searched
    positions  the positions whose directions are tried; None: all
    strength   the sign of all strengths: at 1 directions are written less, at -1 more (W' = (I + s r rᵀ) W)
    """

    def __init__(
        self,
        survey: Survey,
        directions: Directions,
        *,
        norm: Norm | None = None,
        positions: Sequence[str] | None = None,
        strength: int = REMOVE,
    ) -> None:
        self.survey = survey
        self.norm = norm
        self.strength = strength
        self._found = directions
        self.directions = {name: directions.with_method(name) for name in _methods(directions)}
        self.best = directions.best
        self.positions = tuple(directions.positions if positions is None else positions)
        self.roles: tuple[Role, ...] = tuple(
            dict.fromkeys(writer.role for writer in survey.writers if writer.role != "embedding")
        )
        self.distributions = self._distributions(norm)

    def at_positions(self, positions: Sequence[str]) -> Space:
        """The same space with the directions of these positions alone."""
        return Space(self.survey, self._found, norm=self.norm, positions=positions, strength=self.strength)

    def edit(self, parameters: Parameters) -> Edit:
        """The edit that parameters stand for; its provenance is left to the caller."""
        norm: Norm = "column" if parameters["norm"] == "column" else "none"
        schedule = Schedule({role: self._plateau(parameters, role) for role in self.roles}, layers=self.survey.layers)
        return Edit.project(self.survey, self.source(parameters), schedule, norm)

    def source(self, parameters: Parameters) -> DirectionsLike:
        """The directions that parameters name: one for every writer, or each layer's own."""
        directions = self.directions[str(parameters["method"])]
        position = directions.positions.index(str(parameters["position"]))
        if parameters["reach"] == "per-layer":
            return directions.per_layer(position)
        return Everywhere(directions.vector(position, float(parameters["source"])))

    def plain(self, **changes: float | str) -> dict[str, float | str]:
        """The best direction out of every writer at strength 1 (or -1), with some parameters changed.

        `strength`, `start` and `share` change those of all roles. Values are brought into their ranges.
        """
        position, layer = self.best
        name = next(iter(self.directions.values())).positions[position]
        values: dict[str, float | str] = {
            "position": name if name in self.positions else self.positions[0],
            "method": next(iter(self.directions)),
            "norm": self.choices("norm")[0],
            "reach": "one",
            "source": float(layer),
            "taper": 0.0,
        }
        for role in self.roles:
            values |= {f"{role}.strength": float(self.strength), f"{role}.start": 0.0, f"{role}.share": 1.0}
        return self.varied(values, **changes)

    def varied(self, parameters: Parameters, **changes: float | str) -> dict[str, float | str]:
        """Parameters with some changed; `strength`, `start` and `share` change those of all roles."""
        values = dict(parameters)
        for key, value in changes.items():
            names = [key] if key in values else [f"{role}.{key}" for role in self.roles]
            values |= dict.fromkeys(names, value)
        return self.inside(values)

    def inside(self, parameters: Parameters) -> dict[str, float | str]:
        """The nearest parameters that are in range and on the grid, without rounding noise."""
        return {key: _inside(value, self.distributions[key]) for key, value in parameters.items()}

    def choices(self, name: str) -> tuple[Any, ...]:
        """The values that a category may take."""
        distribution = self.distributions[name]
        assert isinstance(distribution, CategoricalDistribution)
        return distribution.choices

    def neighbour(self, parameters: Parameters, generator: random.Random) -> dict[str, float | str]:
        """The same parameters with one to three of them moved a little."""
        values = dict(parameters)
        if generator.random() < 0.25:  # all strengths together
            step = generator.choice((-0.25, -0.15, -0.1, 0.1, 0.15, 0.25))
            names = [f"{role}.strength" for role in self.roles]
            return self.inside(values | {name: float(values[name]) + step for name in names})
        movable = [name for name, each in self.distributions.items() if self._matters(name, each, values)]
        for name in generator.sample(movable, k=min(len(movable), generator.choice((1, 2, 2, 3)))):
            distribution = self.distributions[name]
            if isinstance(distribution, CategoricalDistribution):
                values[name] = generator.choice([each for each in self.choices(name) if each != values[name]])
                continue
            assert isinstance(distribution, FloatDistribution)
            width = distribution.high - distribution.low
            values[name] = _inside(float(values[name]) + generator.gauss(0.0, 0.12) * width, distribution)
        return values

    def lighter(self, parameters: Parameters, generator: random.Random) -> dict[str, float | str]:
        """The same parameters with the edit of one role, or of all, made weaker or narrower."""
        edited = [role for role in self.roles if parameters[f"{role}.strength"] != 0.0]
        role = generator.choice((*edited, None))
        roles = self.roles if role is None else (role,)
        kind = generator.choice(("strength", "strength", "start", "share"))
        factor = generator.choice((0.0, 0.5, 0.7, 0.8, 0.9) if role is not None else (0.7, 0.8, 0.9))
        values = dict(parameters)
        for each in roles:
            name = f"{each}.{kind}"
            if kind == "start":
                values[name] = float(values[name]) + 0.5 * (1.0 - factor) * (1.0 - float(values[name]))
            else:
                values[name] = float(values[name]) * factor
        return self.inside(values)

    def _matters(self, name: str, distribution: BaseDistribution, values: Parameters) -> bool:
        """Whether a change of this parameter would change the edit."""
        if distribution.single() or (name == "source" and values["reach"] == "per-layer"):
            return False
        role, _, kind = name.rpartition(".")
        return kind not in ("start", "share") or values[f"{role}.strength"] != 0.0

    def _plateau(self, parameters: Parameters, role: str) -> Plateau:
        start = float(parameters[f"{role}.start"])
        return Plateau(
            strength=round(float(parameters[f"{role}.strength"]), 6),
            start=start,
            end=start + float(parameters[f"{role}.share"]) * (1.0 - start),
            taper=float(parameters["taper"]),
        )

    def _distributions(self, norm: Norm | None) -> Mapping[str, BaseDistribution]:
        last = self.survey.layers - 1
        found: dict[str, BaseDistribution] = {
            "position": CategoricalDistribution(self.positions),
            "method": CategoricalDistribution(tuple(self.directions)),
            "norm": CategoricalDistribution(("none", "column") if norm is None else (norm,)),
            "reach": CategoricalDistribution(("one", "per-layer")),
            "source": FloatDistribution(round(_FIRST_SOURCE * last, 6), round(_LAST_SOURCE * last, 6)),
            "taper": FloatDistribution(0.0, 0.4),
        }
        for role in self.roles:
            ends = sorted((0.0, MOST_STRENGTH * self.strength))
            found[f"{role}.strength"] = FloatDistribution(ends[0], ends[1], step=STRENGTH_STEP)
            found[f"{role}.start"] = FloatDistribution(0.0, 0.9)
            found[f"{role}.share"] = FloatDistribution(0.1, 1.0)
        return found


def _methods(directions: Directions) -> tuple[str, ...]:
    """The method the directions came by first, then the others."""
    return (directions.method, *(name for name in known_methods() if name != directions.method))


def _inside(value: float | str, distribution: BaseDistribution) -> float | str:
    """The nearest value that a distribution allows."""
    if not isinstance(distribution, FloatDistribution):
        return value
    number = min(max(float(value), distribution.low), distribution.high)
    if distribution.step is not None:
        number = distribution.low + round((number - distribution.low) / distribution.step) * distribution.step
    return round(number, 6)
