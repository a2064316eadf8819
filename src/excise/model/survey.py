"""The survey: every writer of a model's residual stream, found without a table of module names.

One forward pass with gradients on a few tokens; each decoder layer's input is cut from the graph, so that the walk of
`excise.model.graph` sees one layer at a time. The probe (`excise.model.probe`) then proves the result numerically.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from excise.edit import EMBEDDING_LAYER, ModelIdentity, Role, Writer
from excise.errors import SurveyError
from excise.model.graph import GainStep, Walk, Write, mixes_tokens, walk


@dataclass(frozen=True)
class Unresolved:
    """Something that reaches the residual stream and cannot be edited exactly, and why."""

    layer: int
    parameters: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Survey:
    """What writes to the residual stream of a model.

    layers       number of decoder layers; `layers_path` is the module that holds them
    hidden       width of the residual stream
    writers      every parameter whose product is added to it, embeddings first
    unresolved   what was seen and cannot be edited exactly (empty for a model that is fully covered)
    gains        what lies between a post-norm writer and the residual add, by parameter name
    """

    layers: int
    layers_path: str
    hidden: int
    writers: tuple[Writer, ...]
    unresolved: tuple[Unresolved, ...]
    identity: ModelIdentity
    gains: Mapping[str, tuple[GainStep, ...]] = field(repr=False, default_factory=dict)

    @property
    def coverage(self) -> float:
        """The share of what writes to the stream that can be edited exactly; 1.0 when nothing is left out."""
        total = len(self.writers) + len(self.unresolved)
        return len(self.writers) / total if total else 0.0

    def at_writer(self, writer: Writer, directions: Float[Tensor, "rank hidden"]) -> Float[Tensor, "rank hidden"]:
        """The directions to remove from the writer's output so that its *write* loses `directions`.

        Behind a gained norm the write is g ⊙ u/rms(u), so r·write = 0 needs (g ⊙ r)·u = 0; a LayerNorm also removes the
        mean of u. Not normalised.
        """
        at_output = directions.detach().float().cpu()
        for step in self.gains.get(writer.parameter, ()):
            if step.values is not None:
                at_output = at_output * step.values
            if step.centred:
                at_output = at_output - at_output.mean(dim=-1, keepdim=True)
        return at_output

    def without(self, parameter: str) -> Survey:
        """The survey with one writer missing: for tests that the probe notices."""
        return replace(self, writers=tuple(writer for writer in self.writers if writer.parameter != parameter))


def survey(model: nn.Module, *, identity: ModelIdentity) -> Survey:
    """Find every writer of a Transformers decoder model.

    Leaves the model as it was (gradients, hooks, training mode). Raises `SurveyError` when no chain of decoder layers
    can be seen, or the model looks at later tokens (it is not a causal language model).
    """
    tokens = sample_tokens(model)
    with _evaluating(model):
        path, layers = find_layers(model, tokens)
        _check_causal(model, layers, tokens)
        trace = _Trace.record(model, layers, tokens)
    hidden = trace.hidden
    names = _names(model)
    walks = trace.walks(names, hidden)
    writes_by_layer = {layer: result.writes for layer, result in walks.items()}
    nodes = frozenset(write.node for writes in writes_by_layer.values() for write in writes)
    writers: dict[str, Writer] = {}
    gains: dict[str, tuple[GainStep, ...]] = {}
    for layer, writes in sorted(writes_by_layer.items()):
        attached = {write.bias for write in writes}
        for write in writes:
            if write.parameter in attached:
                continue
            role = _role(layer, write, nodes)
            for writer in _with_siblings(_writer(model, layer, role, write, trace, names, hidden), model, path):
                writers.setdefault(writer.parameter, writer)
                gains.setdefault(writer.parameter, write.gains)
    return Survey(
        layers=len(layers),
        layers_path=path,
        hidden=hidden,
        writers=tuple(writers.values()),
        unresolved=tuple(_unresolved(walks)),
        identity=identity,
        gains={name: steps for name, steps in gains.items() if steps},
    )


def sample_tokens(model: nn.Module, *, rows: int = 2, length: int = 16, seed: int = 0) -> Int[Tensor, "rows length"]:
    """Random ordinary tokens for a forward pass: no special or image tokens."""
    config: Any = model.config
    text_config = config.get_text_config()
    settings = {**config.to_dict(), **text_config.to_dict()}
    special = {value for key, value in settings.items() if "token_id" in key and isinstance(value, int)}
    upper = min(text_config.vocab_size, 4096)
    allowed = torch.tensor([token for token in range(min(3, upper - 1), upper) if token not in special])
    choice = torch.randint(len(allowed), (rows, length), generator=torch.Generator().manual_seed(seed))
    return allowed[choice].to(next(model.parameters()).device)


def find_layers(model: nn.Module, tokens: Int[Tensor, "rows length"]) -> tuple[str, nn.ModuleList]:
    """The decoder layers: the longest list of modules that a text-only forward pass runs one after the other, each on a
    floating tensor (rows, length, width) that comes out with the same shape."""
    calls: dict[str, list[int]] = {}
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    }

    def watch(name: str, index: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before, after = stream_in(args, kwargs), stream_of(output)
            if before is not None and after is not None and before.shape == after.shape and before.ndim == 3:
                calls.setdefault(name, []).append(index)

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, modules in lists.items():
            for index, module in enumerate(modules):
                stack.enter_context(attached(module.register_forward_hook(watch(name, index), with_kwargs=True)))
        run(model, tokens)
    chains = {name: indices for name, indices in calls.items() if indices == list(range(len(lists[name])))}
    if not chains:
        seen = ", ".join(sorted(lists)) or "none"
        raise SurveyError(
            f"no chain of decoder layers was seen in {type(model).__name__} (module lists: {seen})",
            hint="open an issue with the model's config.json",
        )
    path = max(chains, key=lambda name: (len(chains[name]), -len(name)))
    return path, lists[path]


def stream_of(output: Any) -> Tensor | None:
    """The residual stream in what a decoder layer returns: the tensor itself, or the first item of a tuple."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) and output.is_floating_point() else None


class _Trace:
    """One forward pass with gradients: the input and output of every layer, and the outputs of parameter owners."""

    def __init__(self) -> None:
        # Nodes are kept rather than tensors: a later in-place addition would replace a tensor's own node.
        self.embedded: Node | None = None
        self.inputs: dict[int, Tensor] = {}
        self.outputs: dict[int, Node | None] = {}
        self.owned: dict[str, tuple[Node | None, int]] = {}

    @classmethod
    def record(cls, model: nn.Module, layers: nn.ModuleList, tokens: Int[Tensor, "rows length"]) -> _Trace:
        trace = cls()

        def before(index: int) -> Any:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                stream = stream_in(args, kwargs)
                assert stream is not None
                if index == 0:
                    trace.embedded = stream.grad_fn
                cut = stream.detach().requires_grad_(True)
                trace.inputs[index] = cut
                if args and args[0] is stream:
                    return (cut, *args[1:]), kwargs
                return args, {key: cut if value is stream else value for key, value in kwargs.items()}

            return hook

        def after(index: int) -> Any:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                stream = stream_of(output)
                assert stream is not None
                trace.outputs[index] = stream.grad_fn

            return hook

        def own(name: str) -> Any:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                if isinstance(output, Tensor) and output.ndim:
                    trace.owned[name] = (output.grad_fn, output.shape[-1])

            return hook

        with ExitStack() as stack, torch.enable_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point() and not parameter.requires_grad:
                    parameter.requires_grad_(True)
                    stack.callback(parameter.requires_grad_, False)
            for index, layer in enumerate(layers):
                stack.enter_context(attached(layer.register_forward_pre_hook(before(index), with_kwargs=True)))
                stack.enter_context(attached(layer.register_forward_hook(after(index))))
            for name, module in model.named_modules():
                if next(module.parameters(recurse=False), None) is not None:
                    stack.enter_context(attached(module.register_forward_hook(own(name))))
            run(model, tokens)
        return trace

    @property
    def hidden(self) -> int:
        return self.inputs[0].shape[-1]

    def walks(self, names: Mapping[int, str], hidden: int) -> dict[int, Walk]:
        walks = {
            index: walk(self.outputs[index], stream=self.inputs[index], names=names, hidden=hidden)
            for index in self.inputs
        }
        if self.embedded is not None:
            walks[EMBEDDING_LAYER] = walk(self.embedded, stream=None, names=names, hidden=hidden)
        return walks


def _writer(
    model: nn.Module, layer: int, role: Role, write: Write, trace: _Trace, names: Mapping[int, str], hidden: int
) -> Writer:
    return Writer(
        parameter=write.parameter,
        layer=layer,
        role=role,
        axis=write.axis,
        expert_axis=write.expert_axis,
        bias=write.bias,
        gain=next((step.parameter for step in write.gains if step.parameter is not None), None),
        module=_hook_place(write, trace, names, hidden),
        tied=_aliases(model, write.parameter),
    )


def _hook_place(write: Write, trace: _Trace, names: Mapping[int, str], hidden: int) -> str | None:
    """The module that owns the parameter, if what it returns is this write and nothing else; else None."""
    owner = write.parameter.rpartition(".")[0]
    node, width = trace.owned.get(owner, (None, 0))
    if node is None or width != hidden:
        return None
    inner = walk(node, stream=None, names=names, hidden=hidden)
    found = {(inside.parameter, inside.bias) for inside in inner.writes}
    plain = not inner.blocked and not any(inside.gains for inside in inner.writes)
    return owner if plain and found == {(write.parameter, write.bias)} else None


def _role(layer: int, write: Write, nodes: frozenset[Node]) -> Role:
    if layer == EMBEDDING_LAYER:
        return "embedding"
    if write.expert_axis is not None or write.routed:
        return "expert"
    mixing = mixes_tokens(write, nodes - {write.node})
    return "attention" if mixing == "softmax" else "mixer" if mixing == "mixer" else "mlp"


def _with_siblings(writer: Writer, model: nn.Module, layers_path: str) -> list[Writer]:
    """The writer and, for an expert in a list of modules, the same parameter of every other expert in that list.

    The survey's few tokens do not visit every expert.
    """
    if writer.role != "expert" or writer.expert_axis is not None:
        return [writer]
    parts = writer.parameter.split(".")
    parameters = dict(model.named_parameters())
    for place in range(len(parts) - 2, 0, -1):
        prefix = ".".join(parts[:place])
        bank = model.get_submodule(prefix) if parts[place].isdigit() and prefix != layers_path else None
        if not isinstance(bank, nn.ModuleList):
            continue
        mine = f"{prefix}.{parts[place]}"
        renamed = [_move(writer, mine, f"{prefix}.{index}") for index in range(len(bank))]
        shape = parameters[writer.parameter].shape
        return [other for other in renamed if getattr(parameters.get(other.parameter), "shape", None) == shape]
    return [writer]


def _move(writer: Writer, old: str, new: str) -> Writer:
    def rename(name: str | None) -> str | None:
        return None if name is None else new + name.removeprefix(old)

    parameter = new + writer.parameter.removeprefix(old)
    return replace(writer, parameter=parameter, bias=rename(writer.bias), module=rename(writer.module))


def _unresolved(walks: Mapping[int, Walk]) -> list[Unresolved]:
    found = []
    for layer, result in sorted(walks.items()):
        found += [Unresolved(layer, blocked.parameters, blocked.reason) for blocked in result.blocked]
        if layer != EMBEDDING_LAYER and not result.carried:
            found.append(Unresolved(layer, (), "the layer does not carry its input through: no residual stream"))
        for gains in result.carried:
            if gains:
                parameters = tuple(step.parameter for step in gains if step.parameter is not None)
                found.append(Unresolved(layer, parameters, "the residual stream itself is normalised inside the layer"))
    return list(dict.fromkeys(found))


def _aliases(model: nn.Module, parameter: str) -> tuple[str, ...]:
    tensor = model.get_parameter(parameter)
    return tuple(
        name for name, other in model.named_parameters(remove_duplicate=False) if other is tensor and name != parameter
    )


def _names(model: nn.Module) -> dict[int, str]:
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), name)
    return names


def _check_causal(model: nn.Module, layers: nn.ModuleList, tokens: Int[Tensor, "rows length"]) -> None:
    """Refuse models whose earlier positions change with a later token."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        stream = stream_of(output)
        assert stream is not None
        seen.append(stream.float())

    changed = tokens.clone()
    changed[:, -1] = tokens[:, 0]
    with attached(layers[-1].register_forward_hook(hook)), torch.no_grad():
        run(model, tokens)
        run(model, changed)
    earlier, last = (seen[0] - seen[1])[:, :-1].abs().max(), (seen[0] - seen[1])[:, -1].abs().max()
    tolerance = 1e-3 if _dtype(model) == torch.float32 else 3e-2
    if float(earlier) > tolerance * float(last):
        raise SurveyError(
            f"{type(model).__name__} looks at later tokens: it is not a causal language model",
            hint="excise edits decoder language models (text generation)",
        )


def _dtype(model: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def run(model: nn.Module, tokens: Int[Tensor, "rows length"]) -> None:
    """A plain forward pass on unpadded tokens."""
    model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)


def stream_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The residual stream in what a decoder layer is given: its first floating tensor (rows, length, width)."""
    candidates = [*args[:1], kwargs.get("hidden_states"), *kwargs.values()]
    for candidate in candidates:
        if isinstance(candidate, Tensor) and candidate.is_floating_point() and candidate.ndim == 3:
            return candidate
    return None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def attached(handle: RemovableHandle) -> Iterator[None]:
    """A hook that lives as long as the block."""
    try:
        yield
    finally:
        handle.remove()
