"""Ask the installed Heretic which parameters it would edit; run by `bench/coverage.py` with the Python of its venv.

    python bench/coverage_driver.py JOBS RESULTS

JOBS is a JSON list of {"kind", "class", "path"}: a checkpoint and the Transformers model class it is of. RESULTS gets
one JSON object a line. Heretic itself is called, never changed: its lookup of layers and modules, then its set-up of
LoRA adapters on what the lookup found, which shows whether the find can be edited at all.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from heretic.config import RowNormalization
from heretic.model import Model, get_model_class


def main() -> None:
    jobs, results = map(Path, sys.argv[1:])
    with results.open("w") as lines:
        for job in json.loads(jobs.read_text()):
            print(json.dumps({"kind": job["kind"], **_answer(job)}), file=lines, flush=True)


def _answer(job: dict[str, str]) -> dict[str, Any]:
    """Heretic's answer for the class the checkpoint is of, and what Heretic's own choice of a class makes of it."""
    try:
        loaded = getattr(transformers, job["class"]).from_pretrained(job["path"], dtype=torch.float32)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the result
        return {"not_loaded": _words(error)}
    try:
        chosen = type(get_model_class(job["path"]).from_pretrained(job["path"], dtype=torch.float32)).__name__
    except Exception as error:  # noqa: BLE001
        chosen = _words(error)
    return {"loads_as": chosen, **_looked_up(loaded)}


def _looked_up(loaded: transformers.PreTrainedModel) -> dict[str, Any]:
    """What the lookup finds, layer by layer. Heretic has no guard around it: one layer that fails stops its run."""
    names: dict[int, set[str]] = {}
    for name, parameter in loaded.named_parameters(remove_duplicate=False):
        names.setdefault(_storage(parameter), set()).add(name)
    model = object.__new__(Model)
    model.model = loaded
    model.settings = SimpleNamespace(row_normalization=RowNormalization.NONE)
    found: set[str] = set()
    failed: dict[int, str] = {}
    try:
        count = len(model.get_layers())
    except Exception as error:  # noqa: BLE001
        return {"parameters": [], "layers": 0, "error": f"no layers: {_words(error)}"}
    for index in range(count):
        try:
            modules = [module for group in model.get_layer_modules(index).values() for module in group]
        except Exception as error:  # noqa: BLE001
            failed[index] = _words(error)
            continue
        for module in modules:
            for parameter in module.parameters():
                if parameter.ndim > 1:  # its adapters leave biases alone
                    found |= names[_storage(parameter)]
    error = next((f"layer {index}: {words}" for index, words in failed.items()), None) or _adapters(model)
    return {"parameters": sorted(found), "layers": count, "failed": sorted(failed), "error": error}


def _adapters(model: Model) -> str | None:
    """Why the modules that were found cannot carry Heretic's adapters, or None."""
    try:
        model._apply_lora()
    except Exception as error:  # noqa: BLE001
        return f"adapters: {_words(error)}"
    return None


def _storage(parameter: torch.Tensor) -> int:
    return parameter.untyped_storage().data_ptr()


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


if __name__ == "__main__":
    main()
