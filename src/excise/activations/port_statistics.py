"""What the writers of a model read: on baseline tokens, and where the behavior is decided.

All of it is independent of any direction, so one pass serves every direction and strength.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from excise.activations.moments import MomentAccumulator
from excise.activations.second_moments import SecondMoment, SecondMomentAccumulator
from excise.model import EditableModel
from excise.model.forward import Batch, forward, pad_id, pad_left, rows_that_fit, run_in_batches
from excise.model.ports import Port
from excise.model.trace import attached
from excise.progress import Progress, silent
from excise.runs import writing

KEYS_BEFORE, KEYS_AFTER = 3, 8
"""Key tokens: how many before the place where the behavior is decided, and from there on."""

_HEADER = "excise_port_statistics"
_MOST_ROWS = 32


@dataclass(frozen=True)
class Exchange:
    """Token ids of a rendered prompt and of a response to it.

    focus  how many response tokens come before the place where the behavior is decided
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    focus: int = 0


@dataclass(frozen=True)
class PortStatistics:
    """What one port reads.

    baseline       second moment over all tokens of baseline exchanges
    keys           the same over the key tokens of target exchanges: the three before the place where the behavior is
                   decided (of the prompt, mostly), and the eight from there on
    key_mean       mean over those
    baseline_mean  mean over the same tokens of baseline exchanges
    """

    baseline: SecondMoment
    keys: SecondMoment
    key_mean: Float[Tensor, " width"]
    baseline_mean: Float[Tensor, " width"]


def collect(
    model: EditableModel,
    ports: Sequence[Port],
    *,
    baseline: Sequence[Exchange],
    target: Sequence[Exchange],
    batch_size: int | None = None,
    progress: Progress = silent,
) -> dict[str, PortStatistics]:
    """Statistics of each port by the name of its writer's parameter; call it with no edit live.

    Only ports that read inputs or outputs are measured. One whose tokens are a shuffled part of the batch's (an expert
    that is a module of its own) is left out, as what it reads cannot be told apart.
    """
    measured = [port for port in ports if port.reads != "projection"]
    every: dict[str, SecondMomentAccumulator] = {}
    near: dict[str, MomentAccumulator] = {}
    keys: dict[str, tuple[SecondMomentAccumulator, MomentAccumulator]] = {}

    def over_baseline(name: str, vectors: Tensor, all_tokens: Tensor, key_tokens: Tensor) -> None:
        every.setdefault(name, SecondMomentAccumulator(vectors.shape[-1])).update(vectors[all_tokens])
        near.setdefault(name, MomentAccumulator()).update(vectors[key_tokens])

    def over_target(name: str, vectors: Tensor, _: Tensor, key_tokens: Tensor) -> None:
        chosen = vectors[key_tokens]
        moment, mean = keys.setdefault(name, (SecondMomentAccumulator(vectors.shape[-1]), MomentAccumulator()))
        moment.update(chosen)
        mean.update(chosen)

    for exchanges, consume in ((baseline, over_baseline), (target, over_target)):
        _stream(model, measured, exchanges, consume, batch_size, progress)
    return {
        name: PortStatistics(
            baseline=every[name].result(),
            keys=keys[name][0].result(),
            key_mean=keys[name][1].result().mean.float(),
            baseline_mean=near[name].result().mean.float(),
        )
        for name in every
        if name in keys
    }


def _stream(
    model: EditableModel,
    ports: Sequence[Port],
    exchanges: Sequence[Exchange],
    consume: Callable[[str, Tensor, Tensor, Tensor], None],
    batch_size: int | None,
    progress: Progress,
) -> None:
    """`consume(name, vectors, tokens, key tokens)` for each port and batch: what it reads, and which of that counts."""
    rows = [[*each.prompt, *each.response] for each in exchanges]

    def work(indices: list[int]) -> None:
        batch = pad_left([rows[index] for index in indices], pad_id(model), model.device)
        every = batch.attention_mask.flatten().nonzero()[:, 0]
        keys = _key_tokens([exchanges[index] for index in indices], batch)

        def take(port: Port, read: Tensor) -> None:
            if read.numel() // read.shape[-1] == batch.input_ids.numel():
                flat = read.detach().reshape(-1, read.shape[-1])
                consume(port.writer.parameter, flat, every.to(flat.device), keys.to(flat.device))

        with ExitStack() as hooks, torch.no_grad():
            for port in ports:
                hooks.enter_context(attached(_hooked(model, port, take)))
            forward(model, batch)

    size = batch_size or rows_that_fit(model, tokens=max(len(row) for row in rows))
    run_in_batches(model, rows, work, batch_size=min(size, _MOST_ROWS), progress=progress, label="statistics")


def _hooked(model: EditableModel, port: Port, take: Callable[[Port, Tensor], None]) -> Any:
    module = model.hf_model.get_submodule(port.module)
    if port.reads == "input":
        return module.register_forward_pre_hook(lambda _, args: take(port, args[0]))
    return module.register_forward_hook(lambda _, __, output: take(port, output))


def _key_tokens(exchanges: Sequence[Exchange], batch: Batch) -> Int[Tensor, " token"]:
    """Places of the key tokens in the flattened batch."""
    width = batch.input_ids.shape[1]
    places: list[int] = []
    for row, each in enumerate(exchanges):
        end = (row + 1) * width
        first = end - len(each.prompt) - len(each.response)
        decided = first + len(each.prompt) + min(each.focus, len(each.response))
        places += range(max(decided - KEYS_BEFORE, first), min(decided + KEYS_AFTER, end))
    return torch.tensor(places)


def save(statistics: dict[str, PortStatistics], path: Path, *, key: str) -> None:
    """Write statistics to one file, whole or not at all (`DiskFullError`); `key` is of all that they depend on."""
    tensors: dict[str, Tensor] = {}
    header: dict[str, Any] = {"key": key, "ports": {}}
    for name, each in statistics.items():
        numbers: dict[str, Any] = {}
        for side in ("baseline", "keys"):
            moment: SecondMoment = getattr(each, side)
            numbers[side] = {"count": moment.count, "trace": moment.trace, "error": moment.error}
            for kind in ("matrix", "sketch"):
                if getattr(moment, kind) is not None:
                    tensors[f"{name}/{side}/{kind}"] = getattr(moment, kind).contiguous()
        tensors[f"{name}/key_mean"], tensors[f"{name}/baseline_mean"] = each.key_mean, each.baseline_mean
        header["ports"][name] = numbers
    with writing(path) as scratch:
        save_file(tensors, scratch, metadata={_HEADER: json.dumps(header)})


def load(path: Path, *, key: str) -> dict[str, PortStatistics] | None:
    """What `save` wrote with this key; None where there is nothing such."""
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        header = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
        if header.get("key") != key:
            return None
        names = set(file.keys())

        def moment(name: str, side: str) -> SecondMoment:
            kinds = [f"{name}/{side}/{kind}" for kind in ("matrix", "sketch")]
            matrix, sketch = (file.get_tensor(kind) if kind in names else None for kind in kinds)
            return SecondMoment(matrix=matrix, sketch=sketch, **header["ports"][name][side])

        return {
            name: PortStatistics(
                moment(name, "baseline"),
                moment(name, "keys"),
                file.get_tensor(f"{name}/key_mean"),
                file.get_tensor(f"{name}/baseline_mean"),
            )
            for name in header["ports"]
        }
