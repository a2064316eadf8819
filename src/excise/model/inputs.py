"""What a model is given when only its text matters, and which part of it reads text."""

from __future__ import annotations

import inspect
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

# Models of which only a part runs on text alone; found when they are first run.
_READERS: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def sample_tokens(model: nn.Module, *, rows: int = 2, length: int = 8, seed: int = 0) -> Int[Tensor, "rows length"]:
    """Random ordinary tokens for a forward pass: no special or image tokens."""
    config: Any = model.config
    settings = {**config.to_dict(), **text_config(model).to_dict()}
    special = {value for key, value in settings.items() if "token_id" in key and isinstance(value, int)}
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    upper = min(getattr(embeddings, "num_embeddings", None) or settings["vocab_size"], 4096)
    allowed = torch.tensor([token for token in range(min(3, upper - 1), upper) if token not in special], device="cpu")
    choice = torch.randint(len(allowed), (rows, length), generator=torch.Generator().manual_seed(seed), device="cpu")
    device = next(model.parameters()).device
    return allowed[choice].to("cpu" if device.type == "meta" else device)


def run(model: nn.Module, tokens: Int[Tensor, "rows length"], **options: Any) -> Any:
    """A plain forward pass on unpadded tokens, and whatever stands in for other inputs; no cache unless asked for.

    A model that asks for images is run by the language model inside it.
    """
    try:
        return _call(text_module(model), tokens, options)
    except (TypeError, ValueError):
        inner = None if model in _READERS else _language_model(model)
        if inner is None:
            raise
        _READERS[model] = inner
        return _call(inner, tokens, options)


def text_module(model: nn.Module) -> nn.Module:
    """The part of a model that runs on text alone: the model itself, unless `run` has found that it needs more."""
    return _READERS.get(model, model)


def without_images(module: nn.Module, tokens: Int[Tensor, "rows length"]) -> dict[str, Any]:
    """What a model that insists on an image (IDEFICS) is given for text alone: one that no token looks at."""
    if not _asks_for_images(module):
        return {}
    config: Any = module.config
    like = next(parameter for parameter in module.parameters() if parameter.is_floating_point())
    return {
        "image_encoder_embeddings": like.new_zeros(len(tokens), 1, 1, config.vision_config.embed_dim),
        "image_attention_mask": torch.zeros(*tokens.shape, 1, dtype=torch.long, device=tokens.device),
    }


def accepts(module: nn.Module, name: str) -> bool:
    """Whether `module.forward` names this parameter (wrappers are looked through)."""
    return name in inspect.signature(module.forward).parameters


def text_config(model: nn.Module) -> Any:
    """The settings of the text tower."""
    config: Any = model.config
    return config.get_text_config(decoder=True)


def setting(config: Any, name: str) -> Any:
    """A setting, or None where the architecture has none or one for each layer (reading that raises a RuntimeError)."""
    try:
        return getattr(config, name, None)
    except RuntimeError:
        return None


def _call(module: nn.Module, tokens: Int[Tensor, "rows length"], options: dict[str, Any]) -> Any:
    offered = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "use_cache": False}
    return module(**{**offered, **_stand_ins(module, tokens), **options})


def _asks_for_images(module: nn.Module) -> bool:
    return accepts(module, "image_encoder_embeddings") and accepts(module, "image_attention_mask")


def _stand_ins(module: nn.Module, tokens: Int[Tensor, "rows length"]) -> dict[str, Any]:
    """Random states of another tower, the same for every row, for layers that attend to one and skip text alone."""
    rows, length = tokens.shape
    hidden = setting(text_config(module), "hidden_size")
    if accepts(module, "cross_attention_states") and isinstance(hidden, int):
        return {"cross_attention_states": _random(module, (rows, 3, hidden))}
    if _asks_for_images(module):
        config: Any = module.config
        mask = torch.ones(rows, length, 1, dtype=torch.long, device=tokens.device)
        return {
            "image_encoder_embeddings": _random(module, (rows, 1, 3, config.vision_config.embed_dim)),
            "image_attention_mask": mask,
        }
    return {}


def _random(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    like = next(parameter for parameter in module.parameters() if parameter.is_floating_point())
    row = torch.randn(shape[1:], generator=torch.Generator().manual_seed(0), device="cpu")
    return row.to(like.device, like.dtype).expand(shape)


def _language_model(model: nn.Module) -> nn.Module | None:
    """The model inside that has the decoder and a language head of its own; else the decoder."""
    if not isinstance(model, PreTrainedModel):
        return None
    decoder: nn.Module | None = model.get_decoder()
    for module in model.modules():
        if module is model or not isinstance(module, PreTrainedModel) or module.get_output_embeddings() is None:
            continue
        if any(inside is decoder for inside in module.modules()):
            return module
    return None if decoder is model else decoder
