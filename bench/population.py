"""What several candidate edits in one batch cost, beside one: prefill and decoding apart.

    python bench/population.py [--candidates 8] [--rows 48] [--prompt 64] [--steps 32] [--hidden N] [--layers N]

Uses the GPU where there is one. Without --model ID, a Qwen3 of random weights is made (by default of the sizes of
Qwen3-0.6B). Prints one JSON object; `ratio` is the time of all candidates together over that of one, `speedup` the
time of one after the other over that of all together.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import excise
from excise.edit import Edit
from excise.model.decoding import Decoding
from excise.model.forward import last_logits, pad_left
from excise.model.row_groups import Population

_VOCABULARY = 32_000


def main() -> None:
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _model(options, device)
    vectors = torch.randn(options.candidates, model.hidden, generator=torch.Generator().manual_seed(0))
    edits = [Edit.project(model.survey, vector, strength=0.5) for vector in vectors]
    assert len(model.sharing(edits)) == 1, "these edits cannot share a batch"
    found = {
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in model.hf_model.parameters()),
        **{name: getattr(options, name) for name in ("candidates", "rows", "prompt", "steps")},
    }
    times: dict[str, dict[str, float]] = {"prefill": {}, "decode": {}}
    for name, some in (("base", [Edit.empty(model.survey)]), ("one", edits[:1]), ("all", edits)):
        with model.edited_rows(some) as population:
            for kind, seconds in _time(model, population, options).items():
                times[kind][name] = seconds
    for kind, seconds in times.items():
        ratio = seconds["all"] / seconds["one"]
        found[kind] = {
            **{f"{name}_seconds": round(value, 4) for name, value in seconds.items()},
            "ratio": round(ratio, 2),
            "speedup": round(options.candidates / ratio, 2),
        }
    print(json.dumps(found, indent=1))


def _options() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--candidates", type=int, default=8)
    arguments.add_argument("--rows", type=int, default=48, help="prompts of each candidate")
    arguments.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    arguments.add_argument("--steps", type=int, default=32, help="tokens decoded")
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--hidden", type=int, default=1024)
    arguments.add_argument("--layers", type=int, default=28)
    arguments.add_argument("--dtype", help="of the random model; bfloat16 on a GPU and float32 on a CPU if not given")
    arguments.add_argument("--model", help="a real model instead of a random one")
    return arguments.parse_args()


def _model(options: argparse.Namespace, device: torch.device) -> excise.EditableModel:
    if options.model:
        loaded = excise.load(options.model)
        return loaded.to(device)
    config = AutoConfig.for_model(
        "qwen3",
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        intermediate_size=options.hidden * 3,
        num_attention_heads=max(1, options.hidden // 64),
        num_key_value_heads=max(1, options.hidden // 128),
        head_dim=128,
        vocab_size=_VOCABULARY,
        tie_word_embeddings=True,
    )
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    return excise.EditableModel(AutoModelForCausalLM.from_config(config, dtype=dtype)).to(device)


@torch.no_grad()
def _time(model: excise.EditableModel, population: Population, options: argparse.Namespace) -> dict[str, float]:
    vocabulary = model.hf_model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, vocabulary, (options.rows, options.prompt), generator=generator).tolist()
    rows = prompts * len(population)
    groups = population.groups(options.rows)
    batch = pad_left(rows, 0, model.device)
    with groups.rows(range(len(rows))):
        prefill = _seconds(lambda: last_logits(model, batch, 1), model.device, options.repeats)
        generation = Decoding(model, rows, range(len(rows)), frozenset(), groups)

        def decode() -> None:
            for _ in range(options.steps):
                generation.step()

        return {"prefill": prefill, "decode": _seconds(decode, model.device, options.repeats)}


def _seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The shortest of a few runs, after one that does not count: others may use the machine."""
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
