"""Several edits live at once, each on its own rows of a batch.

Candidates of a search are measured on the same prompts. On an accelerator decoding waits for the weights to be read,
so that rows of eight candidates in one batch take little longer than those of one. Each row gets what it would get
with its edit live alone, to the rounding of a batch of another size.

Not every edit can share a batch: where a weight itself has to be swapped, or a module does not keep the rows of a batch
apart, the edit is measured alone. `sharing` says which are, and `measure_each` does either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch
from torch import nn

from excise.edit import Change, Edit, Projection, SiteEdit, Writer
from excise.errors import SharedBatchError
from excise.model import live
from excise.model.forward import TokenModel
from excise.model.row_change import ROW_WISE, attach, guard
from excise.model.row_groups import Population
from excise.model.row_layout import Layout, layouts, rule_out

Result = TypeVar("Result")
_AT_ONCE = 8


def favourable_count(device: torch.device) -> int:
    """How many edits to measure at once: 8 where decoding waits for memory, 1 on a CPU, which gains next to nothing."""
    return 1 if device.type == "cpu" else _AT_ONCE


@contextmanager
def population(model: TokenModel, edits: Sequence[Edit]) -> Iterator[Population]:
    """All of `edits` are live inside the block, each on the rows assigned to it; none of them is after it.

    One edit is applied as it always is, to every row. Raises `SharedBatchError` where several cannot share a batch,
    and `EditMismatchError` for an edit whose writers this model does not have.
    """
    together = Population(len(edits))
    with ExitStack() as stack:
        if len(edits) == 1:
            stack.enter_context(live.applied(model.hf_model, edits[0]))
        else:
            if len(sharing(model, edits)) > 1:
                raise SharedBatchError("an edit swaps weights, or is at a module that does not keep rows apart")
            found = layouts(model, [name for edit in edits for site in edit.sites for name in _modules(site)])
            for writer, changes in _by_writer(edits).items():
                assert writer.module is not None
                if found[writer.module].ran:
                    attach(model.hf_model, writer, changes, together, stack)
                else:
                    guard(model.hf_model, writer.module, together, stack)
        yield together


def sharing(model: TokenModel, edits: Sequence[Edit]) -> list[tuple[int, ...]]:
    """Which edits can share a batch: groups of their indices, by their first. An edit that cannot is on its own.

    The first call for a model may run a few short passes; it must have no rows assigned. Raises
    `EditMismatchError` for an edit whose writers this model does not have.
    """
    if len(edits) < 2:
        return [(index,) for index in range(len(edits))]
    parameters = dict(model.hf_model.named_parameters(remove_duplicate=False))
    for edit in edits:
        for site in edit.sites:
            live.check(site, parameters)
    hooked = [index for index, edit in enumerate(edits) if _is_row_wise(model.hf_model, edit)]
    found = layouts(model, [name for index in hooked for site in edits[index].sites for name in _modules(site)])
    shared = tuple(index for index in hooked if all(_fits(found, site) for site in edits[index].sites))
    alone = [(index,) for index in range(len(edits)) if index not in shared]
    return sorted([shared, *alone] if shared else alone)


def measure_each(
    model: TokenModel, edits: Sequence[Edit], work: Callable[[Population], Sequence[Result]]
) -> list[Result]:
    """What `work` finds for each edit: edits that can share a batch are live together, the others one at a time.

    work  is called with some of the edits live, and returns one result for each of them, in their order

    Where it turns out midway that rows cannot be told apart, the edits under way are measured again one at a time.
    """
    found: dict[int, Result] = {}
    waiting = sharing(model, edits)[::-1]
    while waiting:
        indices = waiting.pop()
        try:
            with population(model, [edits[index] for index in indices]) as together:
                results = work(together)
        except SharedBatchError as error:
            if len(indices) == 1:
                raise
            rule_out(model, error.module)
            waiting += [(index,) for index in reversed(indices)]
            continue
        found.update(zip(indices, results, strict=True))
    return [found[index] for index in range(len(edits))]


def _by_writer(edits: Sequence[Edit]) -> dict[Writer, list[tuple[Change, ...]]]:
    """For each writer that any of the edits changes, what each of them does to it."""
    found: dict[Writer, list[tuple[Change, ...]]] = {}
    for index, edit in enumerate(edits):
        for site in edit.sites:
            found.setdefault(site.writer, [()] * len(edits))[index] = site.changes
    return found


def _is_row_wise(model: nn.Module, edit: Edit) -> bool:
    """Whether hooks can do all that an edit does, and know how to do it row by row."""
    once = len({site.writer.parameter for site in edit.sites}) == len(edit.sites)
    return once and all(
        live.hookable(model, site) and all(isinstance(change, ROW_WISE) for change in site.changes)
        for site in edit.sites
    )


def _modules(site: SiteEdit) -> list[str]:
    """The modules that hooks for a site act on."""
    own = [] if site.writer.module is None else [site.writer.module]
    return own + live.tied_heads(site.writer)


def _fits(found: Mapping[str, Layout], site: SiteEdit) -> bool:
    """Whether rows are apart wherever hooks for a site read or change them, as far as passes get there at all."""
    own, *heads = (found[name] for name in _modules(site))
    if not own.ran:
        return True
    reads_input = any(not isinstance(change, Projection) or change.norm != "none" for change in site.changes)
    return own.outputs and (own.inputs or not reads_input) and all(head.inputs for head in heads)
