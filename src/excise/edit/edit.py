"""`Edit`: the narrow waist. Everything upstream produces one, everything downstream consumes one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from excise.edit.change import Change, Mask, Norm, Projection
from excise.edit.writer import Role, Writer
from excise.errors import EditError, EditMismatchError

Strength = float | Mapping[str, float] | Callable[[Writer], float]


@runtime_checkable
class SurveyLike(Protocol):
    """What `Edit.project` needs to know about a model (a `Survey` is one)."""

    @property
    def writers(self) -> tuple[Writer, ...]:
        """The writers of the residual stream."""

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""

    @property
    def identity(self) -> ModelIdentity:
        """Which model this is."""

    def at_writer(self, writer: Writer, directions: Float[Tensor, "rank hidden"]) -> Float[Tensor, "row width"]:
        """The directions to remove from the writer's output so that its write loses `directions`."""


@runtime_checkable
class DirectionsLike(Protocol):
    """Directions by layer (a `Directions` is one)."""

    def at_layer(self, layer: int) -> Float[Tensor, ...]:
        """The unit direction (hidden,) or orthonormal directions (rank, hidden) for the writers of `layer`."""


@dataclass(frozen=True)
class ModelIdentity:
    """Which model an edit was made for: enough to refuse another one.

    config_hash      of the architecture's settings; differs for every other size or kind
    checkpoint_hash  of sampled bytes of every tensor in the weight files; None for a model that came from memory
    """

    name: str
    config_hash: str
    revision: str | None = None
    checkpoint_hash: str | None = None

    def check(self, other: ModelIdentity) -> None:
        """Raise `EditMismatchError` unless an edit for this model fits `other`."""
        if self.config_hash != other.config_hash:
            raise EditMismatchError(
                f"the edit was made for {self.name}, which is not the architecture of {other.name}",
                hint="use the model named in the edit, or make a new edit with `excise search`",
            )
        if None not in (self.checkpoint_hash, other.checkpoint_hash) and self.checkpoint_hash != other.checkpoint_hash:
            raise EditMismatchError(
                f"the edit was made for {self.name}: {other.name} has the same architecture but other weights",
                hint="use the model named in the edit; `--force` applies it all the same",
            )


@dataclass(frozen=True)
class SiteEdit:
    """All changes of one writer; their weight changes add up."""

    writer: Writer
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Edit:
    """A reversible change of a model's writers: small, frozen, serialisable, composable.

    `a + b` adds the weight changes of both; `0.5 * a` halves every strength (for `norm="column"` the lengths stay
    kept, so the weight change is not exactly halved there). Base model and edit together are all that is ever needed.

    sites       one entry per changed writer
    identity    the model it was made for
    provenance  where it came from: behavior, prompt hashes, seed, versions (JSON values)
    scores      what was measured with it (JSON values)
    """

    sites: tuple[SiteEdit, ...]
    identity: ModelIdentity
    provenance: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def project(
        cls,
        survey: SurveyLike,
        directions: DirectionsLike | Float[Tensor, ...],
        strength: Strength = 1.0,
        norm: Norm = "none",
        roles: Collection[Role] | None = None,
        layers: Collection[int] | None = None,
        embedding: bool = False,
    ) -> Edit:
        """Project directions out of the writers of a model.

        directions  a `Directions`, or a tensor for all sites: (hidden,), or (rank, hidden) for a subspace; need not be
                    normalised
        strength    one number, or one per writer (a mapping by parameter name, or a function of the writer); writers
                    at strength 0 are left out
        roles, layers  only these; None means all
        embedding   whether the embeddings are edited too (a tied LM head changes with them)

        Raises `EditError` for directions that are zero, not finite, or of another width than the model.
        """
        sites = []
        for writer in survey.writers:
            is_embedding = writer.role == "embedding"
            if is_embedding and not embedding:
                continue
            if roles is not None and writer.role not in roles and not is_embedding:
                continue
            if layers is not None and writer.layer not in layers and not is_embedding:
                continue
            value = _strength_at(strength, writer)
            if value == 0:
                continue
            at_layer = directions if isinstance(directions, Tensor) else directions.at_layer(writer.layer)
            basis = orthonormal(at_layer, hidden=survey.hidden)
            basis = spanning(survey.at_writer(writer, basis))
            if len(basis):
                sites.append(SiteEdit(writer, (Projection(basis, value, norm),)))
        return cls(tuple(sites), survey.identity)

    @classmethod
    def mask(cls, survey: SurveyLike, scales: Mapping[str, Float[Tensor, ...]]) -> Edit:
        """Scale the inputs of writers: 0 removes a neuron, head or expert, 1 leaves it.

        scales  by the name of a writer's parameter: one factor per input feature, (width,), or (expert, width) for a
                fused bank of experts; an axis of length 1 stands for all of it, so (expert, 1) masks whole experts.
                Writers whose factors are all 1 are left out

        Raises `EditError` for a parameter that is no writer, another number of axes, or factors that are not finite.
        How many inputs a writer has is not known here: it is checked where the edit is applied or baked.
        """
        writers = {writer.parameter: writer for writer in survey.writers}
        unknown = sorted(set(scales) - set(writers))
        if unknown:
            raise EditError(f"{unknown[0]} is no writer of this model", hint="`model.survey.writers` lists them")
        sites = []
        for parameter, scale in scales.items():
            writer, exact = writers[parameter], scale.detach().float().cpu().contiguous()
            axes = "(width,)" if writer.expert_axis is None else "(expert, width)"
            if exact.ndim != (1 if writer.expert_axis is None else 2):
                raise EditError(
                    f"a mask of shape {tuple(scale.shape)} for {parameter}", hint=f"give factors of shape {axes}"
                )
            if not bool(torch.isfinite(exact).all()):
                raise EditError(f"a mask for {parameter} that is not finite", hint="give finite factors, 0 to remove")
            if bool((exact != 1).any()):
                sites.append(SiteEdit(writer, (Mask(exact),)))
        return cls(tuple(sites), survey.identity)

    @classmethod
    def empty(cls, survey: SurveyLike) -> Edit:
        """The edit that changes nothing: the no-op control."""
        return cls((), survey.identity)

    def site(self, parameter: str) -> SiteEdit | None:
        """The changes of one writer, or None where it is left as it is."""
        return self._by_parameter.get(parameter)

    @property
    def _by_parameter(self) -> dict[str, SiteEdit]:
        return {site.writer.parameter: site for site in self.sites}

    def __add__(self, other: Edit) -> Edit:
        """Both edits at once: weight changes add up; equal projections, low-rank changes and masks become one."""
        self.identity.check(other.identity)
        merged = dict(self._by_parameter)
        for site in other.sites:
            mine = merged.get(site.writer.parameter)
            changes = site.changes if mine is None else _merge(mine.changes, site.changes)
            merged[site.writer.parameter] = SiteEdit(site.writer, changes)
        return Edit(tuple(merged.values()), self.identity, {"sum_of": [dict(self.provenance), dict(other.provenance)]})

    def __mul__(self, factor: float) -> Edit:
        """The same edit at `factor` times the strength; scores do not carry over."""
        sites = (
            SiteEdit(site.writer, tuple(change.scaled(factor) for change in site.changes))
            for site in (self.sites if factor else ())
        )
        return Edit(tuple(sites), self.identity, {"scaled_by": factor, "of": dict(self.provenance)})

    __rmul__ = __mul__

    def with_record(
        self, *, provenance: Mapping[str, Any] | None = None, scores: Mapping[str, Any] | None = None
    ) -> Edit:
        """The same change with its provenance or scores replaced."""
        return replace(
            self,
            provenance=self.provenance if provenance is None else provenance,
            scores=self.scores if scores is None else scores,
        )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with a JSON header; the name appears only when the file is whole."""
        from excise.edit.file import save

        save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Read what `save` wrote. Raises `EditError` for anything else."""
        from excise.edit.file import load

        return load(Path(path))


def orthonormal(directions: Float[Tensor, ...], *, hidden: int) -> Float[Tensor, "rank hidden"]:
    """Orthonormal rows that span `directions`, in fp32 on the CPU (computed in fp64); rows keep their order and sign.

    Raises `EditError` where they cannot: zero, dependent, not finite, or of another width than `hidden`.
    """
    rows = directions.detach().cpu().double()
    rows = rows.unsqueeze(0) if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[-1] != hidden:
        raise EditError(
            f"directions of shape {tuple(directions.shape)} do not fit a residual stream of width {hidden}",
            hint="give one vector (hidden,) or a subspace (rank, hidden) found on this model",
        )
    basis, triangle = torch.linalg.qr(rows.T)
    diagonal = triangle.diagonal()
    if not bool(torch.isfinite(rows).all()) or bool((diagonal.abs() <= 1e-10 * rows.norm(dim=-1).max()).any()):
        raise EditError("directions are zero, dependent or not finite", hint="check the activations they came from")
    signed: Tensor = (basis * diagonal.sign()).T
    return signed.float().contiguous()


def spanning(rows: Float[Tensor, "row width"], *, tolerance: float = 1e-6) -> Float[Tensor, "rank width"]:
    """Orthonormal rows that span `rows`, which may depend on one another; fp32 on the CPU, computed in fp64.

    Rows keep their order; one that lies in the span of those before it, up to `tolerance` of its length, adds nothing.
    """
    basis = rows.new_zeros((0, rows.shape[-1]), dtype=torch.float64)
    for row in rows.detach().cpu().double():
        rest = row - (basis @ row) @ basis
        rest = rest - (basis @ rest) @ basis  # once more: the first pass leaves rounding of the size of the row
        length = rest.norm()
        if length > tolerance * row.norm():
            basis = torch.cat([basis, (rest / length)[None]])
    return basis.float().contiguous()


def _strength_at(strength: Strength, writer: Writer) -> float:
    if callable(strength):
        return float(strength(writer))
    if isinstance(strength, Mapping):
        return float(strength.get(writer.parameter, 0.0))
    return float(strength)


def _merge(mine: tuple[Change, ...], theirs: tuple[Change, ...]) -> tuple[Change, ...]:
    merged = list(mine)
    for change in theirs:
        for index, present in enumerate(merged):
            total = present.plus(change)
            if total is not None:
                merged[index] = total
                break
        else:
            merged.append(change)
    return tuple(merged)
