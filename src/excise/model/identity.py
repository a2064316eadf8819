"""Which model this is: a hash of its architecture and one of its weights, both cheap."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig

from excise.edit import ModelIdentity

if TYPE_CHECKING:
    from excise.model.checkpoint import Checkpoint

# Settings that say how a model is run or saved, not which architecture it is.
_VOLATILE = frozenset(
    {
        *("name_or_path", "transformers_version", "architectures", "auto_map", "transformers_weights", "problem_type"),
        *("dtype", "torch_dtype", "quantization_config", "use_cache", "return_dict", "gradient_checkpointing"),
        *("output_hidden_states", "output_attentions", "chunk_size_feed_forward", "is_decoder"),
        *("id2label", "label2id", "num_labels", "decoder_start_token_id"),
        *("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id"),
    }
)
_SAMPLES, _SAMPLE = 4, 64


def config_hash(config: PretrainedConfig) -> str:
    """A hash of what makes the architecture: kind, sizes, layer pattern.

    The same for a configuration read from disk and for that of the model loaded from it, whatever the dtype, the
    attention implementation or the version of Transformers. A vision-language model counts by its text tower.
    Settings at their default are left out, so that a default that a later Transformers adds changes nothing.
    """
    text = config.get_text_config(decoder=True)
    settings = _settings(text)
    defaults = _defaults(type(text))
    chosen = {key: value for key, value in settings.items() if key not in defaults or value != defaults[key]}
    chosen["model_type"] = text.model_type
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def checkpoint_hash(checkpoint: Checkpoint) -> str:
    """A hash of the names, dtypes, shapes and 256 sampled bytes of every stored tensor.

    Reads a few kilobytes per layer, so it takes seconds for 100 GB. How the tensors are split into shards does not
    matter.
    """
    digest = hashlib.sha256()
    files = {shard.name: os.open(shard.path, os.O_RDONLY | getattr(os, "O_BINARY", 0)) for shard in checkpoint.shards}
    try:
        for key, entry in sorted(checkpoint.tensors.items()):
            digest.update(f"{key}\0{entry.dtype}\0{entry.shape}\0".encode())
            last = max(entry.size - _SAMPLE, 0)
            for sample in range(_SAMPLES):
                start = entry.start + last * sample // (_SAMPLES - 1)
                digest.update(_read_at(files[entry.shard], min(_SAMPLE, entry.size), start))
    finally:
        for descriptor in files.values():
            os.close(descriptor)
    return digest.hexdigest()


def model_identity(
    config: PretrainedConfig, *, name: str, revision: str | None = None, directory: Path | None = None
) -> ModelIdentity:
    """The identity of a model; `directory` is its checkpoint, None for a model that exists in memory alone.

    Raises `CheckpointError` for a directory whose weight files cannot be read.
    """
    from excise.model.checkpoint import Checkpoint

    weights = None if directory is None else checkpoint_hash(Checkpoint.open(directory))
    return ModelIdentity(name=name, config_hash=config_hash(config), revision=revision, checkpoint_hash=weights)


def _defaults(kind: type[PretrainedConfig]) -> dict[str, Any]:
    try:
        return _settings(kind())
    except (TypeError, ValueError, AttributeError, KeyError):  # a configuration class that needs arguments
        return {}


def _settings(config: PretrainedConfig) -> dict[str, Any]:
    return {
        key: _plain(value)
        for key, value in config.to_dict().items()
        if key not in _VOLATILE and not key.startswith("_")
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it: tuples become lists, keys strings, everything unknown its name."""
    return json.loads(json.dumps(value, sort_keys=True, default=str))


def _read_at(descriptor: int, size: int, start: int) -> bytes:
    os.lseek(descriptor, start, os.SEEK_SET)
    return os.read(descriptor, size)
