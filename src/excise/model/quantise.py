"""Loading weights in 8 or 4 bits, so that a model can be searched where it would not fit otherwise."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal, get_args

import torch
from transformers import BitsAndBytesConfig

from excise.errors import InputError, MissingExtraError, ModelError

Bits = Literal["8bit", "4bit"]


def quantisation(bits: Bits, config: Any, dtype: str | torch.dtype, *, name: str) -> BitsAndBytesConfig:
    """What Transformers needs to know to pack the weights of a checkpoint while it loads them, with bitsandbytes.

    bits    "8bit": LLM.int8 (Dettmers et al. 2022); "4bit": NF4 with doubly quantised scales (Dettmers et al. 2023)
    config  of the checkpoint
    dtype   what the model computes in; "auto": the checkpoint's own

    What `device_map` leaves to the CPU or the disk stays as the checkpoint has it. Raises `MissingExtraError` without
    bitsandbytes, `ModelError` for a checkpoint that is quantised already, `InputError` for other bits.
    """
    if bits not in get_args(Bits):
        raise InputError(f"weights cannot be loaded in {bits!r}", hint=f"one of: {', '.join(get_args(Bits))}")
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"the checkpoint of {name} is quantised already", hint="load it as it is: without --quantize")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", extra="bitsandbytes")
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_enable_fp32_cpu_offload=True)
    own = config.get_text_config(decoder=True).dtype if dtype == "auto" else dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_enable_fp32_cpu_offload=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=own or torch.bfloat16,
    )
