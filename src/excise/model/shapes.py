"""Running a model that has shapes and no weights: parameters on the meta device, token ids on the CPU.

What a model reads back to decide how to go on (is there padding? which experts were chosen?) has no value there. Such
reads give zeros, questions get a yes, and a choice of elements gives the first and the last but one: two experts of a
list are visited rather than those that a router would choose. That is all a survey needs: their siblings are the same.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from excise.model.weights import is_packed

# Functions that hand values to Python, or whose result has a shape that depends on values; and what they give instead.
_READS: dict[str, Any] = {
    "item": lambda _: 0,
    "__bool__": lambda _: True,
    "__int__": lambda _: 0,
    "__float__": lambda _: 0.0,
    "__index__": lambda _: 0,
    "tolist": lambda tensor: torch.zeros(tensor.shape, dtype=torch.long).tolist(),
    "numpy": lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype).numpy(),
    "nonzero": lambda tensor: torch.stack(_ends(tensor.shape), dim=-1),
    "unique": lambda _: torch.zeros(1, dtype=torch.long),
}


class ShapesOnly(TorchFunctionMode):
    """Inside it, meta tensors may meet tensors of other devices, and be read."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name == "__get__" or not _any_meta((args, kwargs)):  # attributes: shape, dtype, ...
            return function(*args, **kwargs)
        if name in _READS and _is_meta(args[0]):
            return _ends(args[0].shape) if kwargs.get("as_tuple") else _READS[name](args[0])
        if name == "cpu":
            return args[0]
        if name == "where":
            return self._where(function, args, kwargs)
        if name in ("__getitem__", "__setitem__"):
            args = (args[0], _visible(args[1]), *args[2:])
        if name in ("split", "split_with_sizes") and isinstance(args[1], list | tuple):
            args = (args[0], _filled(args[0], args[1], kwargs.get("dim", 0)), *args[2:])
        return function(*_to_meta(args), **_to_meta(kwargs))

    def _where(self, function: Any, args: Any, kwargs: Any) -> Any:
        """A mask that is not of the model's making has values: what it never asks for is left out."""
        mask = args[0]
        if len(args) == 1:
            return _ends(mask.shape)
        if not mask.is_meta and all(isinstance(side, Tensor) for side in args[1:]) and (mask.all() or not mask.any()):
            chosen = args[1] if mask.all() else args[2]
            return chosen.expand(torch.broadcast_shapes(*(tensor.shape for tensor in args)))
        return function(*_to_meta(args), **_to_meta(kwargs))


def outline_of(model: nn.Module) -> PreTrainedModel | None:
    """A copy of a loaded model without weights, fit for `ShapesOnly`; None where it would not be the same model.

    Parameters must have the same names; a quantised one may be stored in another shape than the outline's.
    """
    if not isinstance(model, PreTrainedModel):
        return None
    try:
        with torch.device("meta"):
            outline: PreTrainedModel = type(model)._from_config(copy.deepcopy(model.config))
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError):
        return None  # a class that asks for more than its configuration
    mine, theirs = (dict(either.named_parameters(remove_duplicate=False)) for either in (model, outline))
    alike = mine.keys() == theirs.keys() and all(
        parameter.shape == theirs[name].shape or is_packed(parameter) for name, parameter in mine.items()
    )
    return without_dispatch(outline) if alike else None


def without_dispatch(model: PreTrainedModel) -> PreTrainedModel:
    """The model with experts that are computed without looking at how many tokens each is given."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module._can_set_experts_implementation():
            module.set_experts_implementation("batched_mm")
    return model


def _to_meta(value: Any) -> Any:
    """An argument with all tensors, and all that asks for the CPU, on the meta device."""
    if isinstance(value, Tensor):
        return value if value.is_meta else value.to("meta")
    if isinstance(value, dict):
        return {key: _to_meta(item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_to_meta(item) for item in value)
    if value == "cpu" or (isinstance(value, torch.device) and value.type == "cpu"):
        return "meta"
    return value


def _any_meta(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_any_meta(item) for item in value.values())
    return any(_any_meta(item) for item in value) if isinstance(value, tuple | list) else _is_meta(value)


def _ends(shape: Sequence[int]) -> tuple[Tensor, ...]:
    """The indices of two elements, the first and the last but one (an expert list may end with one that is none)."""
    return tuple(torch.tensor([0, max(length - 2, 0)]) for length in shape)


def _visible(index: Any) -> Any:
    """An index in which masks without values choose two elements, and single numbers are numbers."""
    if not isinstance(index, tuple):
        found = _visible((index,))
        return found[0] if len(found) == 1 else found
    parts: list[Any] = []
    for item in index:
        if _is_mask(item):
            parts += _ends(item.shape)
        else:
            single = isinstance(item, Tensor) and item.ndim == 0 and not item.is_meta and item.dtype != torch.bool
            parts.append(int(item) if single else item)
    return tuple(parts)


def _is_mask(value: Any) -> bool:
    return _is_meta(value) and value.dtype == torch.bool


def _filled(tensor: Tensor, sizes: Any, dim: int) -> list[int]:
    """Sizes to split by, where counts without values do not add up: everything goes to the first."""
    rest = tensor.shape[dim] - sum(sizes)
    return [sizes[0] + rest, *sizes[1:]]


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta
