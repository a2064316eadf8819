"""Which parts of a model write a behavior's direction on target prompts and not on baseline prompts.

A contribution is a mean over target prompts minus one over baseline prompts, of what a part adds to the residual stream
along the direction, at the position where the direction was measured: (rᵀW)ⱼ Δxⱼ for input feature j of a writer W.
Positive ones write the behavior, negative ones write against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from excise.activations import Responses, own_responses
from excise.analysis.writes import Writes, measure_writes
from excise.behaviors import Behavior, PromptSet
from excise.directions import Directions
from excise.edit import EMBEDDING_LAYER, Writer
from excise.find import responses_with_onsets
from excise.model import EditableModel
from excise.model.inputs import setting, text_config
from excise.progress import Progress, silent


@dataclass(frozen=True)
class Attribution:
    """Contributions of writers and of their input features, in units of the residual stream.

    position, layer  where the direction was measured; what later layers write carries the behavior on
    writers  of the model
    stream   the difference in the residual stream along the direction: before the first layer, and after every layer
    totals   of each writer in a layer; missing where it cannot be told
    parts    by input feature, (width,), or (expert, width); missing where a writer cannot be split
    heads    number of heads, for the writers of attention whose inputs are heads
    whole    writers that are not split (or, without a total, not measured), and why
    """

    position: str
    layer: int
    writers: tuple[Writer, ...]
    stream: Float[Tensor, " place"]
    totals: Mapping[str, float]
    parts: Mapping[str, Float[Tensor, "*column"]]
    heads: Mapping[str, int]
    whole: Mapping[str, str]

    @property
    def gap(self) -> float:
        """The difference that is attributed: of the streams after the direction's layer, along the direction."""
        return float(self.stream[self.layer + 1])

    @property
    def accounted(self) -> float:
        """The share of the gap that embeddings and the writers up to the direction's layer make up.

        1 where the stream is a plain sum of writes; otherwise layers also rescale it, or some writes are not known.
        """
        summed = sum(self.totals.get(writer.parameter, 0.0) for writer in self.writers if writer.layer <= self.layer)
        return (float(self.stream[0]) + summed) / self.gap if self.gap else 0.0

    def layer_totals(self) -> list[float]:
        """The sum over the writers of every layer."""
        sums = [0.0] * (len(self.stream) - 1)
        for writer in self.writers:
            if writer.layer != EMBEDDING_LAYER:
                sums[writer.layer] += self.totals.get(writer.parameter, 0.0)
        return sums


def attribute(
    model: EditableModel,
    behavior: Behavior,
    prompts: PromptSet,
    directions: Directions,
    *,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> Attribution:
    """Attribute the best of `directions` to the writers of the model, on the prompts that it was found on.

    Raises `PromptError` and `BehaviorError` for prompts that cannot be used, `ModelError` where one does not fit.
    """
    place, layer = directions.best
    position, direction = directions.positions[place], directions.vectors[directions.best]
    known: tuple[Responses | None, ...] = (None, None)
    if position == "onset":
        known = responses_with_onsets(model, behavior, prompts, batch_size=batch_size, progress=progress)

    def measure(side: tuple[str, ...], responses: Responses | None) -> Writes:
        rows = model.template.encode(side, system=behavior.system, thinking=behavior.thinking)
        if responses is None:
            responses = own_responses(model, rows, [position], batch_size=batch_size, progress=progress)
        return measure_writes(model, rows, responses, position, direction, batch_size=batch_size, progress=progress)

    target, baseline = (
        measure(side, responses) for side, responses in zip((prompts.target, prompts.baseline), known, strict=True)
    )
    return _difference(model, target, baseline, position, layer)


def _difference(model: EditableModel, target: Writes, baseline: Writes, position: str, layer: int) -> Attribution:
    whole = {**target.whole, **baseline.whole}
    names = [name for name in {**target.parts, **baseline.parts} if name not in whole]
    parts = {name: _minus(target.parts.get(name), baseline.parts.get(name)) for name in names}
    parts |= _idle_experts(model, parts, whole)
    count, heads = setting(text_config(model.hf_model), "num_attention_heads"), {}
    for writer in model.survey.writers:
        name = writer.parameter
        if name not in parts or writer.role in ("mlp", "expert"):
            continue
        width = parts[name].shape[-1]
        if writer.role != "attention":
            whole[name] = "its inputs are neither heads nor neurons"
        elif isinstance(count, int) and count > 0 and width % count == 0:
            heads[name] = count
        else:
            whole[name] = f"its {width} inputs are not a whole number of heads ({count})"
    return Attribution(
        position=position,
        layer=layer,
        writers=model.survey.writers,
        stream=target.stream - baseline.stream,
        totals={name: target.totals[name] - baseline.totals[name] for name in target.totals if name in baseline.totals},
        parts=parts,
        heads=heads,
        whole=whole,
    )


def _idle_experts(
    model: EditableModel, parts: Mapping[str, Tensor], whole: Mapping[str, str]
) -> dict[str, Float[Tensor, " width"]]:
    """The experts in lists of modules that no token was sent to: they wrote nothing."""
    listed = [writer for writer in model.survey.writers if writer.role == "expert" and writer.expert_axis is None]
    busy = {writer.layer: parts[writer.parameter] for writer in listed if writer.parameter in parts}
    return {
        writer.parameter: torch.zeros_like(busy[writer.layer])
        for writer in listed
        if writer.layer in busy and writer.parameter not in {**parts, **whole}
    }


def _minus(one: Tensor | None, other: Tensor | None) -> Tensor:
    """The difference of what was written; a listed expert may have been sent tokens on one side alone."""
    nothing = torch.zeros((), dtype=torch.float64)
    return (nothing if one is None else one) - (nothing if other is None else other)
