"""What goes into and comes out of single matrices, at the tokens around the beginning of a response."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from excise.errors import ModelError
from excise.model import EditableModel
from excise.model.forward import Rows, forward, pad_id, pad_left, rows_that_fit, run_in_batches
from excise.model.trace import attached
from excise.progress import Progress, silent


@dataclass(frozen=True)
class Products:
    """Inputs and outputs of one module, in fp32 on the CPU, row after row and in the order of the tokens.

    places  of the tokens, counted from the first token of the response (0); those of the prompt are negative
    """

    inputs: Float[Tensor, "token width"]
    outputs: Float[Tensor, "token hidden"]
    places: Int[Tensor, " token"]


def capture_products(
    model: EditableModel,
    modules: Sequence[str],
    prompt_ids: Rows,
    response_ids: Rows,
    *,
    before: int,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> dict[str, Products]:
    """Inputs and outputs of some modules by name, at the last `before` tokens of each prompt and all of its response.

    Needs tokens × (width + hidden) × 4 bytes per module. Raises `ModelError` where a module is given, or gives, another
    shape than one vector per token.
    """
    pairs = list(zip(prompt_ids, response_ids, strict=True))
    rows = [[*prompt, *response] for prompt, response in pairs]
    spans = [(-min(before, len(prompt)), len(response)) for prompt, response in pairs]
    kept: dict[str, dict[int, tuple[Tensor, Tensor]]] = {name: {} for name in modules}

    def work(indices: list[int]) -> None:
        batch = pad_left([rows[index] for index in indices], pad_id(model), model.device)
        with _watching(model.hf_model, modules, batch.input_ids) as seen:
            forward(model, batch)
        for name in modules:
            for row, index in enumerate(indices):
                taken = spans[index][1] - spans[index][0]
                given, gave = (side[row, -taken:].float().cpu() for side in seen[name])
                kept[name][index] = (given, gave)

    size = batch_size or rows_that_fit(model, tokens=max(len(row) for row in rows))
    run_in_batches(model, rows, work, batch_size=size, progress=progress, label="activations")
    places = torch.cat([torch.arange(*span) for span in spans])
    return {name: _joined(kept[name], places) for name in modules}


def _joined(kept: dict[int, tuple[Tensor, Tensor]], places: Tensor) -> Products:
    inputs, outputs = (torch.cat([kept[index][side] for index in range(len(kept))]) for side in (0, 1))
    return Products(inputs, outputs, places)


@contextmanager
def _watching(
    model: nn.Module, modules: Sequence[str], tokens: Int[Tensor, "row token"]
) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """While the block runs a pass over `tokens`, keep what each module was given and gave, per row and token."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Callable[..., None]:
        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            seen[name] = _per_token(args[0], tokens, name), _per_token(output, tokens, name)

        return after

    with ExitStack() as hooks:
        for name in modules:
            hooks.enter_context(attached(model.get_submodule(name).register_forward_hook(hook(name))))
        yield seen
    missing = [name for name in modules if name not in seen]
    if missing:
        raise ModelError(f"the pass did not run {missing[0]}", hint="open an issue with the model's config.json")


def _per_token(value: Any, tokens: Int[Tensor, "row token"], name: str) -> Float[Tensor, "row token width"]:
    """A module's input or output with its axes of rows and tokens apart: many see all tokens in one row."""
    rows, length = tokens.shape
    if isinstance(value, Tensor) and value.numel() == rows * length * value.shape[-1]:
        return value.reshape(rows, length, value.shape[-1])
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise ModelError(
        f"{name} handles {shape} for {rows} rows of {length} tokens, not one vector per token",
        hint="use a search method that does not look into single matrices, such as --method schedule",
    )
