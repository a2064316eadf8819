"""How many rows of a polish fit in the memory that is free."""

from __future__ import annotations

from excise.model import EditableModel
from excise.search.cost.free import free_memory
from excise.search.cost.memory import SHARE_OF_FREE, Micro, choose_micro
from excise.search.cost.sizes import sizes_of
from excise.search.lessons import WINDOW, Lessons


def micro_that_fits(model: EditableModel, lessons: Lessons, *, rows: int) -> Micro:
    """How to divide steps of `rows` rows, by the longest rows of the lessons and by what is free now.

    A first guess only: a `Polish` takes less where it turns out too much.
    """
    every = (*lessons.target, *lessons.baseline)
    return choose_micro(
        sizes_of(model),
        rows=rows,
        tokens=max(len(each.prompt) + len(each.response) for each in every),
        positions=max(WINDOW, *(len(each.response) for each in lessons.baseline)),
        free=free_memory(model.device) * SHARE_OF_FREE.get(model.device.type, SHARE_OF_FREE["cpu"]),
    )
