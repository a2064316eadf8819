"""The numbers a polish trains: for each port, along which directions it writes less, and when.

A port that reads its input gets y' = y − Rᵀ(A x): the rows of R are the directions that are written less (left factor),
those of A decide when (right factor). One that reads its output gets y' = y − Rᵀ(A y). One that can only be projected
gets y' = y − λ r (r·y). A is kept in whitened coordinates (see `Ridge`): a step of one length moves what baseline
tokens write equally far at every port.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from excise.activations.second_moments import Ridge
from excise.edit import Change, Edit, LowRank, Projection, SiteEdit
from excise.model import EditableModel
from excise.model.ports import Port, change_hook
from excise.model.row_layout import by_row
from excise.model.trace import attached


@dataclass
class Factor:
    """What is trained at one port; tensors in fp32, on the device where the port computes.

    left   directions, of any length (their lengths do not count)
    right  whitened rows of A; for a projection the strength, of shape (rank, 1)
    ridge  how rows of A are whitened; None for a projection
    scale  length of the rows of A at the beginning: the unit of a step
    """

    port: Port
    left: Float[Tensor, "rank hidden"]
    right: Float[Tensor, "rank coordinate"]
    ridge: Ridge | None
    scale: float

    def rows(self) -> tuple[Float[Tensor, "rank hidden"], Float[Tensor, "rank width"]]:
        """R and A, as functions of what is trained."""
        left = normalize(self.left, dim=-1)
        if self.ridge is None:
            return left, self.right * left
        return left, self.ridge.unwhitened(self.right)


class Factors:
    """All factors of a model, and the edit that they amount to."""

    def __init__(self, model: EditableModel, factors: list[Factor]) -> None:
        self.model = model
        self.factors = factors

    @property
    def units(self) -> int:
        """How many rows all factors have together."""
        return sum(len(factor.left) for factor in self.factors)

    @contextmanager
    def live(self, strengths: Float[Tensor, "*row unit"] | None = None) -> Iterator[None]:
        """The model behaves as edited inside the block, and gradients reach the factors and strengths through it.

        strengths  of the units, factor after factor: the same for all, or each batch row's own; None: 1
        """
        with ExitStack() as stack:
            begin = 0
            for factor in self.factors:
                own = None if strengths is None else strengths[..., begin : begin + len(factor.left)]
                begin += len(factor.left)
                module = self.model.hf_model.get_submodule(factor.port.module)
                hook = change_hook(_change(factor, own), reads=factor.port.reads)
                stack.enter_context(attached(module.register_forward_hook(hook)))
            yield

    def scaled(self, strengths: Float[Tensor, " unit"]) -> Factors:
        """The same at other strengths, without the factors that do nothing there."""
        begin, kept = 0, []
        for factor in self.factors:
            own = strengths[begin : begin + len(factor.left)].to(factor.right.device)
            begin += len(factor.left)
            alive = own > 0
            if bool(alive.any()):
                left, right = factor.left.detach()[alive].clone(), (own[:, None] * factor.right.detach())[alive]
                kept.append(replace(factor, left=left, right=right))
        return Factors(self.model, kept)

    def edit(self) -> Edit:
        """The edit as it is now, with nothing that is trained further shared."""
        sites = []
        with torch.no_grad():
            for factor in self.factors:
                left, right = (rows.detach().float().clone() for rows in factor.rows())
                sites.append(SiteEdit(factor.port.writer, self._changes(factor, left, right)))
        return Edit(tuple(sites), self.model.identity)

    def state(self) -> dict[str, Tensor]:
        """What is trained, by name."""
        return {
            f"{factor.port.writer.parameter}/{side}": getattr(factor, side).detach()
            for factor in self.factors
            for side in ("left", "right")
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Set what `state` returned."""
        for factor in self.factors:
            for side in ("left", "right"):
                getattr(factor, side).data.copy_(state[f"{factor.port.writer.parameter}/{side}"])

    def _changes(self, factor: Factor, left: Tensor, right: Tensor) -> tuple[Change, ...]:
        writer = factor.port.writer
        if factor.port.reads == "projection":
            strengths = factor.right[:, 0].tolist()
            return tuple(Projection(row[None].cpu(), each) for row, each in zip(left, strengths, strict=True))
        if factor.port.reads == "output":
            weight = self.model.hf_model.get_parameter(writer.parameter).detach().float()
            right = right.to(weight.device) @ weight.movedim(writer.axis, -2)
        return (LowRank(-left.T.cpu().contiguous(), right.cpu().contiguous()),)


def _change(
    factor: Factor, strengths: Float[Tensor, "*row unit"] | None
) -> Callable[[Float[Tensor, "... width"]], Float[Tensor, "... hidden"]]:
    """What a port writes less, from what it reads."""
    left, right = factor.rows()

    def change(read: Float[Tensor, "... width"]) -> Float[Tensor, "... hidden"]:
        if strengths is None:
            return (read @ right.T) @ -left
        own = strengths.to(read.device)
        if own.ndim == 1:
            return (read @ right.T * own) @ -left
        rows = by_row(read, len(own), module=factor.port.module)
        return ((rows @ right.T * own[:, None]) @ -left).reshape(*read.shape[:-1], left.shape[-1])

    return change
