"""What a small change of the strengths of unit edits does: slopes and curvatures, at the strengths where it is asked.

A unit is one row of a factor: one direction that one writer writes less. Two losses are watched, on the fit split:

    damage    KL(base‖edited) at the first response token plus `SEQUENCE_WEIGHT` times its mean over the response
    behavior  cross-entropy of answers without the behavior, plus how far its own first tokens are from being unlikely

Curvature of the damage is the Fisher matrix of the strengths, E_b[Σ_t w_t Jᵀ(diag(p) − ppᵀ)J] with J = ∂logits/∂α
(Gauss–Newton; exact for KL at zero), of the behavior the mean of gᵀg over rows.

By gradients, Fisher from scores of sampled tokens (Σ_t √w_t ∂log p(y_t), y_t ~ p: their second moment is it without
bias); each row of a batch has strengths of its own, so that one backward pass gives every row's. By differences where
a backend gives no gradients: one pass per unit, logit changes compared through a count sketch (Charikar et al. 2002).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from excise.activations.port_statistics import Exchange
from excise.model import EditableModel
from excise.model.forward import batches_by_length, continuation_logits, padding_is_exact
from excise.model.row_layout import layouts
from excise.model.weights import differentiates
from excise.search.factors import Factors
from excise.search.gradients import frozen
from excise.search.lessons import Lessons
from excise.search.losses import (
    ANSWER_WINDOW,
    answer_loss,
    behavior_loss,
    divergence_by_token,
    sequence_weights,
)

MOST_ROWS = 48
"""Of each kind that are looked at: rows of similar prompts say the same."""

SAMPLES = 2
STEP = 0.02
"""Of a finite difference of strengths."""

BUCKETS = 128
"""Of the count sketch, per token."""


@dataclass(frozen=True)
class Sensitivity:
    """Values, slopes and curvatures at some strengths of n units; in nats."""

    damage: float
    damage_slope: Float[Tensor, " unit"]
    damage_curvature: Float[Tensor, "unit unit"]
    behavior: float
    behavior_slope: Float[Tensor, " unit"]
    behavior_curvature: Float[Tensor, "unit unit"]


@dataclass(frozen=True)
class Watched:
    """What is measured on.

    rows  in one pass
    seed  of the sampled tokens
    """

    model: EditableModel
    factors: Factors
    lessons: Lessons
    answers: Sequence[Exchange]
    rows: int = 12
    seed: int = 0

    @property
    def baseline(self) -> range:
        """Indices of the baseline rows that are looked at."""
        return range(min(len(self.lessons.baseline), MOST_ROWS))

    def kinds(self) -> list[tuple[Sequence[Exchange], Callable[[Sequence[Exchange]], Float[Tensor, " row"]]]]:
        """The rows that tell of the behavior, with their losses."""
        model = self.model
        return [
            (self.answers[:MOST_ROWS], lambda rows: answer_loss(model, rows, window=ANSWER_WINDOW)),
            (self.lessons.target[:MOST_ROWS], lambda rows: behavior_loss(model, rows)),
        ]


def gives_gradients(watched: Watched) -> bool:
    """Whether gradients come back through the whole model: kernels of some quantised backends have none, or zeros."""
    if not differentiates(watched.model.hf_model):
        return False
    row = watched.lessons.target[0]
    values = torch.ones(watched.factors.units, requires_grad=True)
    with frozen(watched.model.hf_model), watched.factors.live(values):
        loss = behavior_loss(watched.model, [row]).sum()
        if not loss.requires_grad:
            return False
        try:
            loss.backward()
        except (RuntimeError, NotImplementedError):
            return False
    return values.grad is not None and bool(values.grad.isfinite().all())


def by_gradients(watched: Watched, strengths: Float[Tensor, " unit"], *, samples: int = SAMPLES) -> Sensitivity:
    """One forward and 1 + `samples` backward passes over baseline rows, one each over the others."""
    units = len(strengths)
    damage, slope, curvature = 0.0, torch.zeros(units), torch.zeros(units, units)
    generator = torch.Generator().manual_seed(watched.seed)
    count = len(watched.baseline)
    with frozen(watched.model.hf_model):
        for group in groups(watched, [watched.lessons.baseline[index] for index in watched.baseline]):
            own = strengths.expand(len(group), -1).clone().requires_grad_(True)
            with watched.factors.live(own):
                loss, scores = damage_and_scores(watched, group, samples, generator)
            (slopes,) = torch.autograd.grad(loss.sum(), own, retain_graph=True)
            for number, score in enumerate(scores):
                (each,) = torch.autograd.grad(score.sum(), own, retain_graph=number < len(scores) - 1)
                curvature += each.T @ each / samples
            damage += float(loss.detach().sum())
            slope += slopes.sum(dim=0)
        behavior, behavior_slope, behavior_curvature = _behavior(watched, strengths)
    return Sensitivity(damage / count, slope / count, curvature / count, behavior, behavior_slope, behavior_curvature)


def by_differences(watched: Watched, strengths: Float[Tensor, " unit"], *, step: float = STEP) -> Sensitivity:
    """One forward pass per unit and row, and no gradient.

    Memory: `BUCKETS` numbers per unit and response token of one batch.
    """
    units = len(strengths)
    damage, slope, curvature = 0.0, torch.zeros(units), torch.zeros(units, units)
    count = len(watched.baseline)
    moved = [strengths + step * one for one in torch.eye(units)]
    with torch.no_grad():
        for group in groups(watched, [watched.lessons.baseline[index] for index in watched.baseline]):
            here = _LogitsHere.measure(watched, group, strengths)
            sketches = []
            for number, other in enumerate(moved):
                change = (_weighted_logits(watched, group, other)[0] - here.logits) / step
                slope[number] += float((here.pull * change).sum())
                sketches.append(here.sketch(change))
            flat = torch.stack(sketches).flatten(1)
            curvature += (flat @ flat.T).cpu()
            damage += here.damage
        before = _behavior_by_row(watched, strengths)
        gradients = torch.stack([(_behavior_by_row(watched, other) - before) / step for other in moved], dim=1)
    parts = _kind_weights(watched)
    behavior_slope = (parts[:, None] * gradients).sum(dim=0)
    behavior_curvature = (gradients * parts[:, None]).T @ gradients
    return Sensitivity(
        damage / count,
        slope / count,
        curvature / count,
        float((parts * before).sum()),
        behavior_slope,
        behavior_curvature,
    )


def groups(watched: Watched, rows: Sequence[Exchange]) -> Iterator[list[int]]:
    """Batches of rows of similar length; of one row each where rows cannot be told apart in what a writer reads."""
    size = watched.rows if _rows_apart(watched) else 1
    equal = not padding_is_exact(watched.model)
    return batches_by_length([[*row.prompt, *row.response] for row in rows], batch_size=size, equal=equal)


def _rows_apart(watched: Watched) -> bool:
    ports = [factor.port for factor in watched.factors.factors]
    found = layouts(watched.model, [port.module for port in ports])
    return all(
        found[port.module].outputs and (port.reads != "input" or found[port.module].inputs) and found[port.module].ran
        for port in ports
    )


def damage_and_scores(
    watched: Watched, group: Sequence[int], samples: int, generator: torch.Generator
) -> tuple[Float[Tensor, " row"], list[Float[Tensor, " row"]]]:
    """Each row's damage, and for each sample its score: Σ_t √w_t log p(y_t)."""
    logits, weights, base = _baseline_logits(watched, group)
    found = logits.float().log_softmax(dim=-1)
    loss = (divergence_by_token(base, found) * weights).sum(dim=-1)
    chances = found.detach().exp().flatten(0, 1).cpu()
    scores = []
    for _ in range(samples):
        drawn = torch.multinomial(chances, 1, generator=generator).to(found.device).view(*weights.shape, 1)
        scores.append((found.gather(-1, drawn)[..., 0] * weights.sqrt()).sum(dim=-1))
    return loss, scores


def _baseline_logits(
    watched: Watched, group: Sequence[int]
) -> tuple[Float[Tensor, "row token vocab"], Float[Tensor, "row token"], Float[Tensor, "row token vocab"]]:
    """Logits on the base model's own responses, what each token counts, and the base model's log-probabilities."""
    reference = watched.lessons.reference
    responses = [reference.responses[index].tokens for index in group]
    found = continuation_logits(
        watched.model, [reference.prompts[index] for index in group], responses, gradients=torch.is_grad_enabled()
    )
    weights = sequence_weights(found.mask).to(found.logits.device)
    base = torch.zeros_like(found.logits, dtype=torch.float32)
    for row, index in enumerate(group):
        known = reference.logits(index)
        base[row, -len(known) :] = known.to(base.device).float()
    return found.logits, weights, base.log_softmax(dim=-1)


@dataclass(frozen=True)
class _LogitsHere:
    """Logits at the strengths that differences are taken from, and what follows from them.

    pull    ∂damage/∂logits: w (p − p_base)
    """

    logits: Float[Tensor, "row token vocab"]
    pull: Float[Tensor, "row token vocab"]
    damage: float
    chances: Float[Tensor, "row token vocab"]
    weights: Float[Tensor, "row token"]
    buckets: Int[Tensor, " vocab"]
    signs: Float[Tensor, " vocab"]

    @classmethod
    def measure(cls, watched: Watched, group: Sequence[int], strengths: Float[Tensor, " unit"]) -> _LogitsHere:
        logits, weights, base = _weighted_logits(watched, group, strengths)
        found = logits.log_softmax(dim=-1)
        generator = torch.Generator().manual_seed(watched.seed)
        vocabulary = logits.shape[-1]
        buckets = torch.randint(BUCKETS, (vocabulary,), generator=generator).to(logits.device)
        signs = (2.0 * torch.randint(2, (vocabulary,), generator=generator) - 1.0).to(logits.device)
        damage = float((divergence_by_token(base, found) * weights).sum())
        pull = weights[..., None] * (found.exp() - base.exp())
        return cls(logits, pull, damage, found.exp(), weights, buckets, signs)

    def sketch(self, change: Float[Tensor, "row token vocab"]) -> Float[Tensor, "row token bucket"]:
        """√(w p) (J − pᵀJ) of one unit, hashed: inner products of two are those of the Fisher matrix, without bias."""
        centred = change - (self.chances * change).sum(dim=-1, keepdim=True)
        scaled = centred * (self.chances * self.weights[..., None]).sqrt() * self.signs
        empty = torch.zeros(*scaled.shape[:-1], BUCKETS, device=scaled.device)
        return empty.index_add(-1, self.buckets, scaled)


def _weighted_logits(
    watched: Watched, group: Sequence[int], strengths: Float[Tensor, " unit"]
) -> tuple[Float[Tensor, "row token vocab"], Float[Tensor, "row token"], Float[Tensor, "row token vocab"]]:
    with watched.factors.live(strengths):
        logits, weights, base = _baseline_logits(watched, group)
    return logits.float(), weights, base


def _behavior(watched: Watched, strengths: Float[Tensor, " unit"]) -> tuple[float, Tensor, Tensor]:
    """Value, slope and curvature of the behavior's losses, one backward pass per batch."""
    units = len(strengths)
    value, slope, curvature = 0.0, torch.zeros(units), torch.zeros(units, units)
    for rows, loss in watched.kinds():
        for group in groups(watched, rows):
            own = strengths.expand(len(group), -1).clone().requires_grad_(True)
            with watched.factors.live(own):
                found = loss([rows[index] for index in group])
            (slopes,) = torch.autograd.grad(found.sum(), own)
            value += float(found.detach().sum()) / len(rows)
            slope += slopes.sum(dim=0) / len(rows)
            curvature += slopes.T @ slopes / len(rows)
    return value, slope, curvature


def _behavior_by_row(watched: Watched, strengths: Float[Tensor, " unit"]) -> Float[Tensor, " row"]:
    """The loss of every row of every kind, in order."""
    found = []
    for rows, loss in watched.kinds():
        values = torch.zeros(len(rows))
        for group in groups(watched, rows):
            with watched.factors.live(strengths):
                values[group] = loss([rows[index] for index in group]).float().cpu()
        found.append(values)
    return torch.cat(found)


def _kind_weights(watched: Watched) -> Float[Tensor, " row"]:
    """What each row of `_behavior_by_row` counts: every kind is a mean."""
    return torch.cat([torch.full((len(rows),), 1.0 / max(len(rows), 1)) for rows, _ in watched.kinds()])
