"""Which of the modules that a pass ran are the decoder layers, and how wide the residual stream is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor, nn

from excise.errors import SurveyError
from excise.model.inputs import setting, text_config
from excise.model.precision import parameter_count
from excise.model.trace import Call, Trace


@dataclass(frozen=True)
class Stack:
    """The decoder.

    layers  module names of its layers; a model that runs one list after the other, or in cycles, has them in the order
            in which the lists are first run
    idle    those that the pass did not run
    calls   every call of a layer, in order; a layer that is run in cycles has several
    hidden  width of the residual stream; the tensor between layers may hold several streams
    """

    layers: tuple[str, ...]
    idle: tuple[str, ...]
    calls: tuple[Call, ...]
    hidden: int


def find_stack(model: nn.Module, trace: Trace, tokens: Int[Tensor, "rows length"]) -> Stack:
    """The decoder layers: of all module lists that are not inside the layers of another, the one that holds most
    parameters, with those that run the same kind of layer on a stream of the same width.

    Lists that run on one vector per token come first: a stream of patches is not what is generated from. Raises
    `SurveyError` where no list was run on a stream.
    """
    ran = {call.layer: call for call in trace.calls}
    lists = {path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    chains = {path: _ran(path, modules, ran) for path, modules in lists.items()}
    chains = {path: names for path, names in chains.items() if names}
    outer = [path for path in chains if not _inside(path, chains)]
    if not outer:
        seen = ", ".join(sorted(lists)) or "none"
        raise SurveyError(
            f"no chain of decoder layers was seen in {type(model).__name__} (module lists: {seen})",
            hint="open an issue with the model's config.json",
        )
    main = max(
        outer,
        key=lambda path: (token_axis(ran[chains[path][0]].shape, tokens) is not None, parameter_count(lists[path])),
    )
    width, kinds = ran[chains[main][0]].shape[-1], {type(model.get_submodule(name)) for name in chains[main]}
    chosen = [
        path
        for path in outer
        if ran[chains[path][0]].shape[-1] == width
        and kinds & {type(model.get_submodule(name)) for name in chains[path]}
    ]
    first = {path: next(i for i, call in enumerate(trace.calls) if call.layer in chains[path]) for path in chosen}
    layers = tuple(
        f"{path}.{index}" for path in sorted(chosen, key=first.__getitem__) for index in range(len(lists[path]))
    )
    calls = tuple(call for call in trace.calls if call.layer in set(layers))
    return Stack(layers, tuple(name for name in layers if name not in ran), calls, _hidden(model, width))


def token_axis(shape: Sequence[int], tokens: Int[Tensor, "rows length"]) -> int | None:
    """The axis of a stream that counts rows, with the tokens of a row right behind it; None for another kind of stream.

    Most are (row, token, hidden); several streams may come before (stream, row, token, hidden) or after the tokens.
    """
    rows = tuple(tokens.shape)
    return next((axis for axis in range(len(shape) - 2) if tuple(shape[axis : axis + 2]) == rows), None)


def _ran(path: str, modules: nn.ModuleList, ran: dict[str, Call]) -> list[str]:
    return [name for name in (f"{path}.{index}" for index in range(len(modules))) if name in ran]


def _inside(path: str, chains: Mapping[str, Sequence[str]]) -> bool:
    """Whether a list lies inside a layer of another list that was run."""
    return any(path.startswith(f"{name}.") for other, names in chains.items() if other != path for name in names)


def _hidden(model: nn.Module, width: int) -> int:
    """The width of one stream: layers that carry several side by side return a multiple of the hidden size."""
    declared = setting(text_config(model), "hidden_size")
    return declared if isinstance(declared, int) and declared and width % declared == 0 else width
