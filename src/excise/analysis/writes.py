"""What every writer of a model writes along one direction, at one position, on average over prompts.

One pass over the prompts with hooks. Each decoder layer is cut at its writes (`excise.analysis.cuts`) and
differentiated on its own as soon as it has run: nothing is kept of a token but sums, in fp64.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from excise.activations import Plan, Responses, plan_positions
from excise.analysis.cuts import Cuts, cut
from excise.analysis.features import by_input
from excise.edit import EMBEDDING_LAYER, Writer
from excise.model import EditableModel
from excise.model.forward import Batch, Rows, inputs_of, pad_id, pad_left, rows_that_fit, run_in_batches
from excise.model.streams import residual_of
from excise.model.trace import attached, streams_in
from excise.progress import Progress, silent

_UNREACHED = "no gradient comes from the stream to this write"
_HIDDEN = "no module shows this write by itself"


@dataclass(frozen=True)
class Writes:
    """Means over prompts, along one direction and at one position; fp64 on the CPU.

    stream  what the residual stream holds before the first layer and after every layer
    totals  what each writer in a layer wrote, bias included; by parameter; a lone vector, which is the same for every
            token, and an expert that no token was sent to count as 0; missing where it cannot be told
    parts   the same by input feature (and expert, where the weight is a bank), without the bias
    whole   writers that are not split over their inputs (or, without a total, not measured), and why
    """

    stream: Float[Tensor, " place"]
    totals: Mapping[str, float]
    parts: Mapping[str, Float[Tensor, "*column"]]
    whole: Mapping[str, str]


def measure_writes(
    model: EditableModel,
    prompt_ids: Rows,
    responses: Responses,
    position: str,
    direction: Float[Tensor, " hidden"],
    *,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> Writes:
    """Run the prompts once, with gradients inside one layer at a time.

    prompt_ids, responses, position  see `excise.activations.stream_residuals`

    Raises `BehaviorError` for an unknown position, `ModelError` where not even one prompt fits in memory.
    """
    rows = [[*prompt, *response] for prompt, response in zip(prompt_ids, responses.tokens, strict=True)]
    total = _Sums(places=model.survey.layers + 1)

    def work(indices: list[int]) -> None:
        plan = plan_positions(
            [position],
            [len(prompt_ids[index]) for index in indices],
            [len(responses.tokens[index]) for index in indices],
            [responses.onsets[index] for index in indices],
        )
        batch = pad_left([rows[index] for index in indices], pad_id(model), model.device)
        total.add(_watch(model, batch, plan, direction))  # only once the batch has passed: it may have to be repeated

    longest = max(len(row) for row in rows)
    size = batch_size or rows_that_fit(model, tokens=2 * longest)  # what a layer computes is kept until it has run
    run_in_batches(model, rows, work, batch_size=size, progress=progress, label="what is written")
    return total.mean(len(rows))


@dataclass
class _Sums:
    """Sums over prompts, as they come in."""

    places: int
    stream: Tensor = field(init=False)
    totals: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    parts: dict[str, Tensor] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stream = torch.zeros(self.places, dtype=torch.float64)

    def add(self, other: _Sums) -> None:
        self.stream += other.stream
        for name, value in other.totals.items():
            self.totals[name] += value
        for name, part in other.parts.items():
            self.split(name, part)
        self.whole |= other.whole

    def split(self, name: str, part: Tensor) -> None:
        self.parts[name] = self.parts[name] + part if name in self.parts else part

    def mean(self, count: int) -> Writes:
        return Writes(
            stream=self.stream / count,
            totals={name: value / count for name, value in self.totals.items()},
            parts={name: part / count for name, part in self.parts.items() if name not in self.whole},
            whole=dict(self.whole),
        )


def _watch(model: EditableModel, batch: Batch, plan: Plan, direction: Float[Tensor, " hidden"]) -> _Sums:
    """The sums of one batch."""
    names = model.survey.layer_names
    watch = _Watch(model, batch, plan, direction)
    with ExitStack() as stack, torch.enable_grad():
        watch.cuts = stack.enter_context(cut(model.hf_model, model.survey))
        for index, name in enumerate(names):
            layer = model.hf_model.get_submodule(name)
            stack.enter_context(attached(layer.register_forward_pre_hook(watch.enter, with_kwargs=True)))
            stack.enter_context(attached(layer.register_forward_hook(watch.leave(index))))
        model.tower(**inputs_of(model.tower, batch))
    return watch.sums()


class _Watch:
    """Looks at the stream before and after every layer of one pass, and at what was written in between."""

    def __init__(self, model: EditableModel, batch: Batch, plan: Plan, direction: Float[Tensor, " hidden"]) -> None:
        self.model, self.tokens, self.plan, self.direction = model, batch.input_ids, plan, direction
        self.cuts = Cuts()
        self.found = _Sums(places=model.survey.layers + 1)
        self.before: float | None = None
        self.after: dict[int, float] = {}

    def sums(self) -> _Sums:
        """What the pass amounted to. A layer that was not run passes the stream on."""
        latest = self.before or 0.0
        for index in range(self.found.places):
            latest = latest if index == 0 else self.after.get(index - 1, latest)
            self.found.stream[index] = latest
        for writer in self.model.survey.writers:
            self.complete(writer)
        return self.found

    def complete(self, writer: Writer) -> None:
        """Say what is not known of a writer."""
        name, found = writer.parameter, self.found
        if writer.layer == EMBEDDING_LAYER or name in found.whole:
            return
        if writer.module is None and self.model.hf_model.get_parameter(name).ndim > 1:
            found.whole[name] = _HIDDEN
        else:
            found.totals.setdefault(name, 0.0)
        for step in (step for path in self.model.survey.paths.get(name, ()) for step in path):
            if step.parameter in self.cuts.unfixed:
                found.whole[name] = f"what {step.parameter} does to this write is not known"
            elif step.parameter is None and step.values is None and step.part is None:
                found.whole[name] = "it passes a norm without a gain, whose scale could not be held fixed"

    def enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.cuts.calls.clear()
        if self.before is None:
            self.before = float(self.along(tuple(streams_in(args, kwargs))).detach().double().sum())

    def leave(self, index: int) -> Callable[..., Any]:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            along = self.along(output)
            self.after[index] = float(along.detach().double().sum())
            self.attribute(along.sum())
            return _detached(output)

        return hook

    def along(self, output: Any) -> Float[Tensor, " row"]:
        """What the stream of every row holds along the direction, at the position."""
        stream = residual_of(output, self.tokens, self.model.hidden)
        return self.plan.take(stream)[:, 0] @ self.direction.to(stream.device, torch.float32)

    def attribute(self, along: Float[Tensor, ""]) -> None:
        calls, self.cuts.calls = self.cuts.calls, []
        if not calls:
            return
        leaves = [call.leaf for call in calls]
        gradients: tuple[Tensor | None, ...] = (None,) * len(leaves)
        if along.requires_grad:
            gradients = torch.autograd.grad(along, leaves, allow_unused=True)
        for call, gradient in zip(calls, gradients, strict=True):
            name = call.writer.parameter
            if gradient is None:
                self.found.whole[name] = _UNREACHED
                continue
            self.found.totals[name] += float((call.leaf.detach().float() * gradient.float()).sum(dtype=torch.float64))
            split = by_input(self.model.hf_model, call, gradient)
            if isinstance(split, str):
                self.found.whole[name] = split
            else:
                self.found.split(name, split)


def _detached(output: Any) -> Any:
    """What a layer returned, without its graph, so that the next one starts afresh."""
    if isinstance(output, Tensor):
        return output.detach()
    if isinstance(output, dict):
        return type(output)(**{name: _detached(value) for name, value in output.items()})
    if isinstance(output, tuple | list):
        values = [_detached(value) for value in output]
        return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
    return output
