"""Strength schedules: a compact shape over the layers, per role, that a search can tune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from excise.edit.writer import Role, Writer


@dataclass(frozen=True)
class Plateau:
    """Strength over depth: `strength` between `start` and `end`, falling to zero linearly over `taper` on each side.

    Positions and the taper are fractions of the depth (0 the first layer, 1 the last), so that one schedule means the
    same for models of any depth.
    """

    strength: float
    start: float = 0.0
    end: float = 1.0
    taper: float = 0.0

    def at(self, depth: float) -> float:
        """The strength at a depth between 0 and 1."""
        outside = max(self.start - depth, depth - self.end, 0.0)
        if outside == 0.0:
            return self.strength
        return self.strength * max(0.0, 1.0 - outside / self.taper) if self.taper > 0 else 0.0


@dataclass(frozen=True)
class Schedule:
    """One plateau per role; a role that is not named is left as it is. Called with a writer, gives its strength."""

    plateaus: Mapping[Role, Plateau]
    layers: int

    def __call__(self, writer: Writer) -> float:
        """The strength for one writer; embeddings take the strength of depth 0."""
        plateau = self.plateaus.get(writer.role)
        if plateau is None:
            return 0.0
        return plateau.at(max(writer.layer, 0) / max(self.layers - 1, 1))
