"""The proof of coverage: the *leak*.

Project a unit vector v out of every writer (embeddings included) at strength 1 and run a forward pass. If nothing that
writes to the residual stream was missed, and every axis, bias and gain is right, v·h is zero everywhere. The leak is
the largest |v·h| / ‖h‖ over the embeddings, all layers and all tokens; below 1e-4 in fp32 coverage is proven.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from excise.edit import Edit
from excise.model.causal import causal_tokens, check_causal
from excise.model.inputs import run
from excise.model.live import applied
from excise.model.precision import is_narrow, is_small, most_exactly
from excise.model.survey import Survey
from excise.model.trace import attached, streams_in, streams_of

PROVEN = 1e-4
"""The leak below which nothing was missed, where the residual stream is fp32: covered models show 1e-7."""
# What rounding alone leaves, with a margin, where a large model cannot be run with its stream in fp32.
_COARSE = {torch.float32: PROVEN, torch.float64: PROVEN, torch.float16: 5e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Exposure:
    """The largest |v·h| / ‖h‖ of a direction over embeddings, layers and tokens.

    varying  without what a table that is not learned adds to the embeddings (`Survey.fixed`): the component that the
             embeddings of another row have at the same position
    whole    all of it
    """

    varying: float
    whole: float


def leak(
    model: nn.Module, survey: Survey, *, direction: Float[Tensor, " hidden"] | None = None, seed: int = 0
) -> float:
    """The leak of a survey: 0.3 or so for a model that is not covered at all, rounding error for one that is.

    direction  a vector (hidden,) to project out; None draws a random one from `seed`

    What is no weight (a table of sinusoids) is the same for every prompt and cannot be removed; it does not count.
    """
    return leaks(model, survey, direction=direction, seed=seed).varying


def leaks(
    model: nn.Module, survey: Survey, *, direction: Float[Tensor, " hidden"] | None = None, seed: int = 0
) -> Exposure:
    """The leak, and what is left with all that is not learned."""
    if direction is None:
        direction = torch.randn(survey.hidden, generator=torch.Generator().manual_seed(seed))
    edit = Edit.project(survey, direction, strength=1.0, embedding=True)

    def work(exact: bool) -> Exposure:
        with applied(model, edit, exact=exact):
            return measure(model, survey, direction, seed=seed)

    return most_exactly(model, work)


def exposure(model: nn.Module, survey: Survey, direction: Float[Tensor, " hidden"], *, seed: int = 0) -> float:
    """The largest |v·h| / ‖h‖ of a direction in the residual stream as the model stands (no edit is applied here)."""
    return measure(model, survey, direction, seed=seed).whole


@torch.no_grad()
def measure(model: nn.Module, survey: Survey, direction: Float[Tensor, " hidden"], *, seed: int = 0) -> Exposure:
    """How much of a direction is in the residual stream of the model as it stands.

    Raises `SurveyError` for a model that looks at later tokens.
    """
    tokens = _probe_tokens(model, survey, seed)
    fixed = survey.fixed and not _learns_more(model, survey, direction, tokens)
    unit = torch.nn.functional.normalize(direction.detach().float().cpu(), dim=0)
    varying: list[Tensor] = []
    whole: list[Tensor] = []
    constant: list[Tensor] = []
    last: dict[int, Tensor] = {}

    def note(stream: Tensor) -> None:
        exact = stream.float()
        if exact.shape[-1] != len(unit):  # several streams side by side
            exact = exact.unflatten(-1, (-1, len(unit)))
        along, length = exact @ unit.to(exact.device), exact.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        whole.append((along.abs() / length).max().cpu())
        if fixed and along.shape == tokens.shape:
            if not constant:
                constant.append(along[[-1, -1, *([0] * (len(along) - 2))]])  # rows 0 and 1 are almost alike
            along = along - constant[0].to(along.device)
        varying.append((along.abs() / length).max().cpu())

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for stream in streams_in(args, kwargs):
            note(stream)

    def after(_: nn.Module, __: Any, output: Any) -> None:
        for stream in streams_of(output):
            last[0] = stream
            note(stream)

    with ExitStack() as stack:
        for index, name in enumerate(survey.layer_names):
            layer = model.get_submodule(name)
            if index == 0:
                stack.enter_context(attached(layer.register_forward_pre_hook(before, with_kwargs=True)))
            stack.enter_context(attached(layer.register_forward_hook(after)))
        run(model, tokens)
    check_causal(model, last[0], tokens)
    return Exposure(float(torch.stack(varying).max()), float(torch.stack(whole).max()))


def _learns_more(
    model: nn.Module, survey: Survey, direction: Float[Tensor, " hidden"], tokens: Int[Tensor, "rows length"]
) -> bool:
    """Whether a parameter that the survey does not know moves the embeddings along a direction.

    Its part may be the same for every prompt (the embedding of the first segment): only gradients tell it from a table.
    """
    embedded: list[Tensor] = []
    gains = {step.parameter for paths in survey.paths.values() for path in paths for step in path}
    known = gains | {name for writer in survey.writers for name in (writer.parameter, writer.bias, *writer.tied)}
    others = [value for name, value in model.named_parameters() if name not in known and value.requires_grad]
    first = model.get_submodule(survey.layer_names[0])

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        embedded.append(streams_in(args, kwargs)[0])

    with torch.enable_grad(), attached(first.register_forward_pre_hook(before, with_kwargs=True)):
        run(model, tokens)
        along = embedded[0].float() @ direction.to(embedded[0].device, torch.float32)
        gradients = torch.autograd.grad(along.sum(), others, allow_unused=True) if along.requires_grad else ()
    return any(gradient is not None and bool(gradient.any()) for gradient in gradients)


def _probe_tokens(model: nn.Module, survey: Survey, seed: int) -> Tensor:
    """Of a large model a few tokens, which on a CPU cost hardly more than reading the weights; more where experts are
    separate modules, each of which must be visited."""
    separate = any(writer.role == "expert" and writer.expert_axis is None for writer in survey.writers)
    rows, length = (4, 64) if separate else (3 if survey.fixed else 2, 30 if is_small(model) else 8)
    return causal_tokens(model, rows=rows, length=length, seed=seed + 1)


def tolerance(model: nn.Module) -> float:
    """The leak below which coverage counts as proven: 1e-4; more for a large model in half precision whose code does
    not let its residual stream be fp32, which the first probe finds out."""
    if not is_narrow(model):
        return PROVEN
    return max(_COARSE.get(parameter.dtype, 2e-2) for parameter in model.parameters())
