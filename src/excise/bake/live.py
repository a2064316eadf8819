"""Behaviour of a baked model against its base with the edit live: first-token logits and the leak."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from excise.bake.result import Difference
from excise.edit import Edit, Projection, SiteEdit
from excise.progress import Progress, silent

if TYPE_CHECKING:
    from excise.model import EditableModel

# Ordinary requests in several styles; what the model answers does not matter, only that its numbers agree.
_PROMPTS = (
    "Hello",
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain how bread dough rises, in two sentences.",
    "List three things to pack for a hike in the rain, and say why each of them matters.",
    "Translate to German: The library opens at nine in the morning.",
    "def fibonacci(n):",
    "My cat sleeps all day. Should I be worried?",
)
_FULL_STRENGTH = 1e-6
_SLICE = 1 << 24  # elements


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured; the leak is None where no writer has its directions removed at strength 1."""

    difference: Difference
    kind: str
    leak: float | None
    leak_sites: int
    leak_bound: float


def roundoff(dtype: torch.dtype) -> float:
    """The largest relative error of rounding to `dtype`: 2⁻⁸ for bf16."""
    return float(torch.finfo(dtype).eps) / 2


def compare(
    out: Path,
    base: Path,
    edit: Edit,
    *,
    exact: bool,
    unit: float,
    force: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Comparison:
    """Load the base, run it with the edit live, load the baked model, run that. Never both at once.

    exact  compute in fp32, so that the rounding of the baked weights is the only difference; else in the checkpoint's
           dtype, where activations are rounded at different places as well
    unit   the roundoff of the checkpoint's dtype

    The bound on the difference is measured, not guessed: the base runs once more with every edited weight moved at
    random by as much as rounding can move it, and the baked model may differ by four times what that does.
    """
    from excise.model import load

    dtype = "float32" if exact else "auto"
    progress("compare with the live edit", 0, 2)
    model = load(base, dtype=dtype, trust_remote_code=trust_remote_code)
    rows = _rows(model)
    with model.edited(edit, force=force):
        live = _logits(model, rows)
        _perturb(model.hf_model, edit, unit)
        noise = _difference(live, _logits(model, rows), math.inf, "").relative
    computed = str(model.dtype).removeprefix("torch.")
    del model
    gc.collect()
    progress("compare with the live edit", 1, 2)
    baked = load(out, dtype=dtype, trust_remote_code=trust_remote_code)
    sites = [site for site in edit.sites if _removes(site)]
    with _Leak(baked.hf_model, sites) as leak:
        logits = _logits(baked, rows)
    progress("compare with the live edit", 2, 2)
    return Comparison(
        difference=_difference(live, logits, 4 * noise + 1e-5, computed),
        kind=type(baked.hf_model).__name__,
        leak=leak.largest,
        leak_sites=len(sites),
        leak_bound=(1 if exact else 2) * unit + 1e-5,
    )


def _rows(model: EditableModel) -> list[Tensor]:
    from excise.errors import ModelError
    from excise.model.inputs import sample_tokens

    try:
        encoded = model.template.encode(list(_PROMPTS))
    except ModelError:  # no tokenizer: any tokens will do
        return list(sample_tokens(model.hf_model, rows=len(_PROMPTS), length=24).unsqueeze(1).unbind())
    return [torch.tensor([row]) for row in encoded]


@torch.no_grad()
def _logits(model: EditableModel, rows: list[Tensor]) -> Float[Tensor, "prompt vocabulary"]:
    """Logits of the first response token, one prompt at a time: no padding that could differ."""
    from excise.model.inputs import run

    last = [run(model.hf_model, row.to(model.device)).logits[0, -1] for row in rows]
    return torch.stack([logits.float().cpu() for logits in last])


@torch.no_grad()
def _perturb(model: nn.Module, edit: Edit, unit: float) -> None:
    """Move every weight of the edit by a random part of `unit` of its size, in place, a slice at a time."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for site in edit.sites:
        weight = parameters[site.writer.parameter].data
        generator = torch.Generator(weight.device).manual_seed(0)
        for part in weight.split(max(1, _SLICE * len(weight) // max(weight.numel(), 1))):
            noise = torch.rand(part.shape, generator=generator, device=part.device) * 2 - 1
            part.copy_(part.float() * (1 + unit * noise))


def _difference(
    live: Float[Tensor, "prompt vocabulary"], baked: Float[Tensor, "prompt vocabulary"], bound: float, dtype: str
) -> Difference:
    one, other = (logits.double() - logits.double().mean(dim=-1, keepdim=True) for logits in (live, baked))
    relative = (one - other).norm(dim=-1) / one.norm(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
    log_one, log_other = one.log_softmax(dim=-1), other.log_softmax(dim=-1)
    kl = (log_one.exp() * (log_one - log_other)).sum(dim=-1)
    return Difference(
        relative=float(relative.nan_to_num(math.inf).max()),
        bound=bound,
        largest=float((live - baked).abs().max()),
        kl=max(float(kl.max()), 0.0),
        prompts=len(live),
        dtype=dtype,
    )


def _removes(site: SiteEdit) -> bool:
    """Whether the writer's directions are gone after the edit, and a module shows what it writes."""
    if len(site.changes) != 1 or site.writer.module is None:
        return False
    change = site.changes[0]
    return isinstance(change, Projection) and abs(change.strength - 1) < _FULL_STRENGTH


class _Leak:
    """While entered, follows the largest |V·y| / ‖y‖ of what the writers of `sites` write."""

    def __init__(self, model: nn.Module, sites: list[SiteEdit]) -> None:
        self.model, self.sites = model, sites
        self.largest: float | None = None
        self.hooks = ExitStack()

    def __enter__(self) -> _Leak:
        for site in self.sites:
            change = site.changes[0]
            assert isinstance(change, Projection)
            module = self.model.get_submodule(site.writer.module or "")
            self.hooks.callback(module.register_forward_hook(self._follow(change.directions)).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self.hooks.close()

    def _follow(self, directions: Float[Tensor, "rank hidden"]) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            written = (output[0] if isinstance(output, tuple | list) else output).float()
            along = (written @ directions.to(written.device).T).norm(dim=-1)
            length = written.norm(dim=-1)
            share = torch.where(length > 0, along / length.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
            self.largest = max(self.largest or 0.0, float(share.max()))

        return hook
