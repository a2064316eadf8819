"""How long the survey and the probe of a real architecture take, beside loading it.

    python bench/survey_speed.py [--layers N] [--hidden N] [--keep DIR]

Writes a Qwen3 of random weights in bf16 (by default of the sizes of Qwen3-4B: 8 GB of disk and of memory), loads it,
reads every page of it once, surveys and probes it, and prints one JSON object. With root's rights the page cache is
dropped first, so that the model comes from the disk; else "cold" is false.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

import excise

_CHUNK = 1 << 22
_PAGE = 2048  # bf16 elements


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--layers", type=int, default=36)
    arguments.add_argument("--hidden", type=int, default=2560)
    arguments.add_argument("--keep", type=Path, help="where the model lies, or is to be kept")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = options.keep or Path(scratch) / "model"
        if not (place / "config.json").is_file():
            _write(place, options.layers, options.hidden)
        cold = _drop_cache()
        print(json.dumps({"cold": cold, **_measure(place)}, indent=1))


def _write(place: Path, layers: int, hidden: int) -> None:
    config = AutoConfig.for_model(
        "qwen3",
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=hidden * 19 // 5,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151_936,
        tie_word_embeddings=True,
    )
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    values = (torch.randn(_CHUNK, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    for parameter in model.parameters():
        flat = parameter.data.view(-1)
        if parameter.ndim == 1:
            flat.fill_(1)
            continue
        for start in range(0, len(flat), _CHUNK):
            part = flat[start : start + _CHUNK]
            part.copy_(values[: len(part)].roll(start % 977))
    model.save_pretrained(place, max_shard_size="4GB")
    del model
    gc.collect()


def _drop_cache() -> bool:
    os.sync()
    with suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return True
    sys.stderr.write("the page cache could not be dropped: the load may be warm\n")
    return False


def _measure(place: Path) -> dict[str, float | int]:
    began = time.perf_counter()
    loaded = excise.load(place)
    opened = time.perf_counter()
    for parameter in loaded.hf_model.parameters():  # the file is mapped: it is read when it is first touched
        parameter.data.view(torch.int16).view(-1)[::_PAGE].sum()
    read = time.perf_counter()
    writers = len(loaded.survey.writers)
    surveyed = time.perf_counter()
    leak = loaded.leak()
    probed = time.perf_counter()
    return {
        "parameters": sum(parameter.numel() for parameter in loaded.hf_model.parameters()),
        "open_seconds": opened - began,
        "load_seconds": read - began,
        "survey_seconds": surveyed - read,
        "probe_seconds": probed - surveyed,
        "share_of_load": (probed - read) / (read - began),
        "writers": writers,
        "leak": leak,
    }


if __name__ == "__main__":
    main()
