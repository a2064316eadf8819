"""Where a behavior is written: layers, heads, neurons and experts, confirmed by ablating them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from excise import runs
from excise.analysis.attribution import Attribution, attribute
from excise.analysis.confirmation import Bench, Confirmation, Effect, confirm
from excise.analysis.pools import KINDS, MASKABLE, Component, Kind, ablation, pools
from excise.behaviors import Behavior, Splits
from excise.directions import Directions
from excise.edit import Edit
from excise.errors import InputError
from excise.find import find_directions
from excise.model import EditableModel
from excise.progress import Progress, silent

_PLAIN_SUM = 0.02


@dataclass(frozen=True)
class Components:
    """Which parts of a model write a behavior.

    attribution    of the direction to every writer and its inputs
    rows           the components of each kind that contribute most, either way, largest first
    counts         how many of each kind the model has
    base           what the base model does; None where nothing was ablated
    confirmations  what ablating the first of each kind does
    edit           the mask that removes those that were confirmed; None where none was
    effect         what that edit does
    """

    attribution: Attribution = field(repr=False)
    rows: Mapping[Kind, tuple[Component, ...]]
    counts: Mapping[Kind, int]
    base: Effect | None = None
    confirmations: tuple[Confirmation, ...] = ()
    edit: Edit | None = field(default=None, repr=False)
    effect: Effect | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the figures do not cover, in words."""
        found = self.attribution
        together: dict[str, list[str]] = defaultdict(list)
        for name, why in found.whole.items():
            together[f"{'attributed as a whole' if name in found.totals else 'not attributed'}: {why}"].append(name)
        notes = [
            f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {why}"
            for why, names in together.items()
        ]
        if abs(found.accounted - 1) > _PLAIN_SUM:
            notes.append(
                f"the writes up to layer {found.layer} make up {100 * found.accounted:.0f} % of the difference there: "
                "layers also rescale the stream, or some writes are not known"
            )
        return tuple(notes)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        found = self.attribution
        return {
            "position": found.position,
            "layer": found.layer,
            "gap": found.gap,
            "accounted": found.accounted,
            "stream": found.stream.tolist(),
            "counts": dict(self.counts),
            **{f"{kind}s": [component.to_json() for component in rows] for kind, rows in self.rows.items()},
            "base": self.base and self.base.to_json(),
            "confirmations": [each.to_json() for each in self.confirmations],
            "effect": self.effect and self.effect.to_json(),
            "whole": dict(found.whole),
            "notes": list(self.notes),
        }


def components(
    model: EditableModel,
    behavior: Behavior | str,
    *,
    splits: Splits | None = None,
    directions: Directions | None = None,
    top: int = 20,
    ablate: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> Components:
    """Attribute a behavior's direction to the parts of a model, and ablate those that write it most.

    Contributions are measured on the `fit` split, where the direction was found; ablations on `tune`. The same seed
    gives the same result. The model is left as it was.

    splits      the behavior's own, made with `seed`, where not given
    directions  found on the `fit` split where not given; their best one is attributed
    top         how many components of each kind are listed, and ablated at most
    ablate      False leaves out the confirmation, which has to generate responses

    Raises `InputError` for settings that cannot be, `BehaviorNotShownError` where the model does not show the behavior,
    `PromptError`, `BehaviorError`, `ModelError`.
    """
    if top < 1:
        raise InputError(f"the top {top} components", hint="ask for at least one")
    behavior = Behavior.load(behavior) if isinstance(behavior, str) else behavior
    splits = splits or behavior.splits(seed=seed)
    if directions is None:
        directions = find_directions(
            model, behavior, splits=splits, seed=seed, batch_size=batch_size, progress=progress
        )
    found = attribute(model, behavior, splits.fit, directions, batch_size=batch_size, progress=progress)
    by_kind = pools(found)
    rows = {kind: by_kind[kind].largest(top) for kind in KINDS if kind in by_kind}
    counts = {kind: len(by_kind[kind]) for kind in rows}
    if not ablate:
        return Components(found, rows, counts)
    bench = Bench.measure(model, behavior, splits.tune, batch_size=batch_size, progress=progress)
    maskable = [by_kind[kind] for kind in MASKABLE if kind in by_kind]
    tried = [confirm(bench, found, pool, top=top, seed=seed, progress=progress) for pool in maskable]
    confirmations = tuple(each for each in tried if each is not None)
    chosen = [component for each in confirmations if each.confirmed for component in each.components]
    if not chosen:
        return Components(found, rows, counts, bench.base, confirmations)
    edit = ablation(model.survey, found, chosen)
    effect = bench.effect(edit)
    edit = edit.with_record(
        provenance={
            "behavior": behavior.name,
            "splits": {"sizes": splits.sizes(), "sha256": splits.digest()},
            "seed": seed,
            "components": [component.to_json() for component in chosen],
            "versions": runs.versions(),
        },
        scores={"tune": effect.to_json()},
    )
    return Components(found, rows, counts, bench.base, confirmations, edit, effect)
