"""Loading a model: any causal language model that Transformers loads, from safetensors, without running pickles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from excise.errors import CheckpointError, ExciseError, InputError, ModelError
from excise.model.checkpoint import Checkpoint, locate
from excise.model.editable import EditableModel
from excise.model.evidence import read_evidence
from excise.model.own_code import OwnCode, explained, is_known_type, needs_own_code
from excise.model.quantise import Bits, quantisation

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TRUST = "read that code; if you trust it, repeat with --trust-remote-code"


def load(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
    offline: bool = False,
    evidence: str | Path | None = None,
    allow_partial: bool = False,
    quantize: Bits | None = None,
) -> EditableModel:
    """Load a model and its tokenizer from a local directory or a Hub id.

    revision           commit, tag or branch of a Hub model
    dtype              "auto" (as the checkpoint), "float32", "bfloat16" or "float16"
    device_map         as in Transformers; None puts the model on the accelerator if there is one, else on the CPU
    trust_remote_code  run modelling code that comes with the checkpoint
    offline            use only what is on this machine
    evidence           a file that names writers of an odd architecture (`excise.model.evidence`)
    allow_partial      go on where some of what writes to the residual stream cannot be edited exactly
    quantize           pack the weights in "8bit" or "4bit" with bitsandbytes, in memory alone

    Raises `ModelError` (not there, not a causal language model), `CheckpointError` (weights truncated, corrupted, or
    pickled), `InputError` (an unknown dtype, an evidence file that cannot be used), `MissingExtraError` (no
    bitsandbytes to quantise with).
    """
    vouched = () if evidence is None else read_evidence(Path(evidence))
    directory = locate(str(name_or_path), revision=revision, offline=offline)
    config = read_config(directory, trust_remote_code)
    auto_class = auto_class_for(config, directory)
    packing = {}
    if quantize is not None:
        packing["quantization_config"] = quantisation(quantize, config, _dtype(dtype), name=directory.name)
    Checkpoint.open(directory)  # headers, index and sizes are checked before any weight is read
    with explained(directory.name, OwnCode.named(vars(config), directory, auto_class.__name__)):
        model, loaded = auto_class.from_pretrained(
            directory,
            config=config,
            dtype=_dtype(dtype),
            device_map=device_map or ("auto" if torch.accelerator.is_available() else "cpu"),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
            **packing,
        )
    if missing := sorted(loaded["missing_keys"]):
        raise CheckpointError(
            f"{directory.name} lacks the weights of {len(missing)} parameters ({', '.join(missing[:3])}, ...)",
            hint="the download is incomplete, or this version of transformers cannot read the checkpoint",
        )
    return EditableModel(
        model,
        _tokenizer(directory, trust_remote_code),
        path=directory,
        name=str(name_or_path),
        revision=revision,
        evidence=vouched,
        allow_partial=allow_partial,
    )


def read_config(directory: Path, trust_remote_code: bool) -> Any:
    """The configuration of a model directory. Raises `ModelError` for one that is missing, broken or unknown."""
    path = directory / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{directory} has no config.json", hint="give the directory of a Transformers model, or a Hub id"
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({error})", hint="download the model again") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{path} is not a table of settings", hint="download the model again")
    if not trust_remote_code and needs_own_code(settings):
        raise ModelError(f"{directory.name} needs the modelling code that comes with it", hint=_TRUST)
    own = OwnCode.named(settings, directory, "AutoConfig") if trust_remote_code else None
    try:
        with explained(directory.name, own):
            config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code, local_files_only=True)
    except ExciseError:
        raise
    except Exception as error:
        if is_known_type(settings):
            told = " ".join(str(error).split())
            raise ModelError(f"{path} cannot be used ({told})", hint="download the model again") from error
        raise ModelError(
            f"this version of transformers does not know the model type {settings.get('model_type')!r}",
            hint="upgrade transformers (pip install -U transformers)",
        ) from error
    if not trust_remote_code:
        vars(config).pop("auto_map", None)  # so that nothing later on can come to run that code
    return config


def auto_class_for(config: Any, directory: Path) -> Any:
    """The Transformers loader for a text-generating model. Raises `ModelError` for any other kind of model."""
    architectures: list[str] = getattr(config, "architectures", None) or []
    remote = set(getattr(config, "auto_map", None) or {})
    other = [name for name in architectures if name.endswith(("MaskedLM", "Classification", "QuestionAnswering"))]
    if config.is_encoder_decoder or other:
        found = ", ".join(architectures) or "an encoder-decoder"
        raise ModelError(f"{directory.name} is not a causal language model ({found})", hint="excise edits decoders")
    # Some model types are in both lists: the checkpoint says whether it holds the decoder alone.
    multimodal = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    if multimodal is not None and multimodal in architectures:
        known = type(config) in AutoModelForImageTextToText._model_mapping
        return AutoModelForImageTextToText if known else getattr(transformers, multimodal)
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "AutoModelForCausalLM" in remote:
        return AutoModelForCausalLM
    if multimodal is not None:
        return AutoModelForImageTextToText
    raise ModelError(
        f"{directory.name} is not a causal language model (type {config.model_type})",
        hint="excise edits models that generate text: decoders, and vision-language models with a decoder",
    )


def skeleton(config: Any, auto_class: Any, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The architecture with names and shapes, and no memory for weights. Raises `ModelError`.

    auto_class  what `auto_class_for` gives
    """
    own = OwnCode.named(vars(config), Path(config.name_or_path), auto_class.__name__)
    with torch.device("meta"), explained(config.model_type, own):
        model: PreTrainedModel
        if issubclass(auto_class, PreTrainedModel):  # one that no auto class knows
            model = auto_class._from_config(config)
        else:
            model = auto_class.from_config(config, trust_remote_code=trust_remote_code)
        return model


def _tokenizer(directory: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    if not any((directory / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json", "tokenizer.model")):
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:
        if not trust_remote_code and _brings_code(directory / "tokenizer_config.json"):
            raise ModelError(f"{directory.name} needs the tokenizer code that comes with it", hint=_TRUST) from error
        raise ModelError(
            f"the tokenizer of {directory.name} cannot be read ({type(error).__name__}: {error})",
            hint="download the model again; a tokenizer may need a package of its own (sentencepiece, tiktoken)",
        ) from error
    return tokenizer


def _brings_code(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("auto_map"))
    except (OSError, ValueError, AttributeError):
        return False


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in _DTYPES:
        raise InputError(f"unknown dtype {dtype!r}", hint=f"one of: auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


__all__ = ["load"]
