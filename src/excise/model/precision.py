"""Computing more exactly than a model's own dtype, for as long as a proof takes.

In half precision the rounding of every write and of every residual add hides a missing writer: a model of a few billion
parameters shows 5e-4 with nothing missing. Small models are probed in fp32. Of large ones only what the proof rests on
is: the matrices stay as they are, their products are widened to fp32 before anything is removed from them or added to
the stream. That costs no copy of the weights, and hardly any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

from excise.model.weights import compute_dtype, is_packed, is_plain, length_of

LARGE = 1_000_000_000
"""Parameters from which on a model is not copied for a proof."""
SMALL_MATRIX = 1 << 20
"""Elements below which a matrix of a large model is widened like its vectors are."""


Result = TypeVar("Result")
_STREAM_STAYS_NARROW: WeakSet[nn.Module] = WeakSet()


def parameter_count(module: nn.Module) -> int:
    """How many numbers a module holds in its parameters."""
    return sum(map(length_of, module.parameters()))


def is_small(model: nn.Module) -> bool:
    """Whether a model is plain (not quantised, not offloaded) and small enough for a copy in fp32."""
    return all(map(is_plain, model.parameters())) and parameter_count(model) < LARGE


def most_exactly(model: nn.Module, work: Callable[[bool], Result]) -> Result:
    """What `work(exact)` gives while the model computes as exactly as it can; `exact`: its stream is fp32.

    A large model whose code asks for one dtype throughout, or whose weights are offloaded, stays as it is; `is_narrow`
    says so afterwards. Running out of memory is raised.
    """
    if is_small(model):
        with in_float32(model):
            return work(True)
    if is_offloaded(model):
        _STREAM_STAYS_NARROW.add(model)  # its parameters are others in every pass
    if not is_narrow(model):
        try:
            with with_wide_stream(model):
                return work(True)
        except (RuntimeError, TypeError) as error:
            if is_out_of_memory(error):
                raise
            _STREAM_STAYS_NARROW.add(model)
    return work(False)


def is_narrow(model: nn.Module) -> bool:
    """Whether a large model was found to let nothing but its own dtype through."""
    return model in _STREAM_STAYS_NARROW


def is_out_of_memory(error: Exception) -> bool:
    """Whether PyTorch says that memory ran out, on whatever device."""
    message = str(error).lower()
    return "out of memory" in message or "can't allocate memory" in message


def is_outline(model: nn.Module) -> bool:
    """Whether a model has names and shapes alone. One whose weights are offloaded has them, wherever they lie."""
    hooked = any(hasattr(module, "_hf_hook") for module in model.modules())
    return not hooked and all(parameter.is_meta for parameter in model.parameters())


def is_offloaded(model: nn.Module) -> bool:
    """Whether weights come from elsewhere for each pass, and are gone after it."""
    return not is_outline(model) and any(parameter.is_meta for parameter in model.parameters())


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Compute in fp32 inside the block; the model's own tensors return after it."""
    with ExitStack() as stack:
        for parameter in model.parameters():
            _widen(parameter, stack)
        yield


@contextmanager
def with_wide_stream(model: nn.Module) -> Iterator[None]:
    """Keep the residual stream in fp32 inside the block, whatever the dtype of the matrices that write to it.

    A module with a large or packed matrix is given its inputs in the dtype it takes, and its outputs are widened; all
    smaller parameters are widened themselves.
    """
    with ExitStack() as stack:
        for module in model.modules():
            own = list(module.parameters(recurse=False))
            if not own:
                continue
            largest, packed = max(own, key=Tensor.numel), any(map(is_packed, own))
            if not packed and (largest.ndim < 2 or largest.numel() < SMALL_MATRIX):
                for parameter in own:
                    _widen(parameter, stack)
            else:
                before = _casting(compute_dtype(model, module) if packed else largest.dtype)
                stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(_widened_output).remove)
        yield


def _widen(parameter: nn.Parameter, stack: ExitStack) -> None:
    if not is_packed(parameter) and parameter.dtype != torch.float64:
        stack.callback(setattr, parameter, "data", parameter.data)
        parameter.data = parameter.data.float()


def _casting(dtype: torch.dtype) -> Callable[..., Any]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return tuple(_cast(value, dtype) for value in args), {
            name: _cast(value, dtype) for name, value in kwargs.items()
        }

    return hook


def _widened_output(_: nn.Module, __: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(_cast(value, torch.float32) for value in output)
    return _cast(output, torch.float32)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
