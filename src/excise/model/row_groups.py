"""Which edit each row of a batch is computed with, while several edits are live."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor


class Population:
    """Edits that are live together, by number, and which of them each row of the next pass belongs to.

    Nothing belongs to any edit before rows are assigned (`groups`): passes then are the base model's. A population of
    one edit needs no assignment: it is live on every row.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._assigned: tuple[int, ...] | None = None
        self._on_device: dict[torch.device, Int[Tensor, " row"]] = {}

    def __len__(self) -> int:
        return self._count

    def groups(self, each: int, *, edits: Sequence[int] | None = None) -> RowGroups:
        """Rows to be run: `each` for the first edit, then as many for the next one, and so on.

        edits  only for these, in this order
        """
        chosen = range(self._count) if edits is None else edits
        return RowGroups(self, [edit for edit in chosen for _ in range(each)])

    @property
    def assigned(self) -> tuple[int, ...] | None:
        """The edit of each row of the next pass; None: rows are not told apart."""
        return self._assigned

    def assign(self, edits: Sequence[int] | None) -> None:
        """Say which edit each row of the next pass is computed with; `RowGroups` does so for whoever runs batches."""
        self._assigned = None if edits is None else tuple(edits)
        self._on_device = {}

    def assigned_on(self, device: torch.device) -> Int[Tensor, " row"] | None:
        """`assigned` as an index on a device, moved there once."""
        if self._assigned is None:
            return None
        if device not in self._on_device:
            self._on_device[device] = torch.tensor(self._assigned, device=device)
        return self._on_device[device]


class RowGroups:
    """The rows of one run over batches, and the edit of each: what regroups, pads and drops rows tells it which.

    edits  for each row of the run, the edit it belongs to
    """

    def __init__(self, population: Population, edits: Sequence[int]) -> None:
        self._population = population
        self._edits = tuple(edits)

    def __len__(self) -> int:
        return len(self._edits)

    @contextmanager
    def rows(self, indices: Sequence[int]) -> Iterator[None]:
        """Passes inside the block have these rows of the run, in this order; none is assigned afterwards."""
        self._population.assign([self._edits[index] for index in indices])
        try:
            yield
        finally:
            self._population.assign(None)

    def now(self, indices: Sequence[int]) -> None:
        """The next pass has these rows of the run, in this order; inside `rows` alone."""
        assert self._population.assigned is not None, "rows are told apart inside `rows` alone"
        self._population.assign([self._edits[index] for index in indices])
