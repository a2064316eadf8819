"""What the cost of a run depends on of the model: a handful of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from excise.edit import Writer
from excise.model import EditableModel
from excise.model.ports import Port, ports_of
from excise.model.weights import is_plain


@dataclass(frozen=True)
class PortSize:
    """One port.

    width     of what it reads
    measured  statistics of what it reads are kept; else only a strength is learned
    mlp       what it reads is a gated product (an MLP, an expert), rather than what attention or a mixer gives
    share     how much of the model's tokens pass it: less than 1 for one expert among many
    """

    width: int
    measured: bool
    mlp: bool
    share: float = 1.0


@dataclass(frozen=True)
class Sizes:
    """One model.

    weight_bytes  as they lie in memory
    itemsize      bytes of a number of the residual stream
    keys          numbers per token and layer that a cache keeps for attention
    matrices      heads whose attention matrices are kept for gradients; 0 where attention never makes them
    """

    parameters: int
    weight_bytes: int
    hidden: int
    layers: int
    vocabulary: int
    itemsize: int
    keys: int
    matrices: int
    ports: tuple[PortSize, ...]


def sizes_of(model: EditableModel) -> Sizes:
    """The numbers of a model that is loaded. It must have been surveyed, or have no edit live."""
    config = model.hf_model.config.get_text_config(decoder=True)
    parameters = list(model.hf_model.parameters())
    heads = _number(config, "num_attention_heads", 0)
    head = _number(config, "head_dim", model.hidden // max(heads, 1))
    attention = getattr(config, "_attn_implementation", None) or "sdpa"
    survey = model.survey
    return Sizes(
        parameters=sum(parameter.numel() for parameter in parameters),
        weight_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        hidden=survey.hidden,
        layers=survey.layers,
        vocabulary=_number(config, "vocab_size", 32_000),
        itemsize=model.dtype.itemsize,
        keys=2 * head * _number(config, "num_key_value_heads", heads),
        matrices=heads if attention == "eager" else 0,
        ports=tuple(_port(model.hf_model, port, config) for port in ports_of(model.hf_model, survey).found),
    )


def _port(model: nn.Module, port: Port, config: Any) -> PortSize:
    writer = port.writer
    inner = _inner_width(model, port)
    if writer.role != "expert":
        return PortSize(inner, port.reads != "projection", mlp=writer.role == "mlp")
    chosen = _number(config, "num_experts_per_tok", 1)
    if writer.expert_axis is not None:  # all experts of a layer: every token passes so many of them
        reads = _number(config, "hidden_size", inner) if port.reads == "output" else inner
        return PortSize(reads, port.reads != "projection", mlp=True, share=chosen * inner / max(reads, 1))
    every = max(_number(config, "num_local_experts", 0), _number(config, "num_experts", 0), chosen, 1)
    return PortSize(inner, measured=False, mlp=True, share=chosen / every)


def _inner_width(model: nn.Module, port: Port) -> int:
    """Width of the writer's input: its weight's axis that is neither the residual's nor the experts'."""
    writer: Writer = port.writer
    module: Any = model.get_submodule(port.module)
    weight = model.get_parameter(writer.parameter)
    if not is_plain(weight):
        return int(getattr(module, "in_features", 0) or weight.shape[-1])
    axes = [axis % weight.ndim for axis in (writer.axis, writer.expert_axis) if axis is not None]
    left = [length for axis, length in enumerate(weight.shape) if axis not in axes]
    return max(left, default=1)


def _number(config: Any, name: str, otherwise: int) -> int:
    value = getattr(config, name, None)
    return value if isinstance(value, int) and value > 0 else otherwise
