"""What the base model does, measured once: responses and logits, kept on disk by a hash of all they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from excise import runs
from excise.behaviors import Behavior
from excise.evaluation.reference import Reference
from excise.model import EditableModel
from excise.model.generate import Response, generate_from_tokens
from excise.progress import Progress, silent

MOST_BYTES = 4 << 30
"""Logits beyond this are not kept on disk."""


@dataclass(frozen=True)
class Baselines:
    """A folder of results of models without an edit; one that is None keeps nothing.

    What is in it is found again by the weights, the dtype, the prompts as token ids (so that template, system turn and
    thinking count), the lengths, and the versions of torch and Transformers. A model that has no checkpoint is never
    kept. Damaged files are measured again.
    """

    folder: Path | None

    @classmethod
    def shared(cls, otherwise: Path | None = None) -> Baselines:
        """In the folder that EXCISE_CACHE names, else in `otherwise`."""
        found = runs.shared_folder() or otherwise
        return cls(None if found is None else found / "baselines")

    def responses(
        self,
        model: EditableModel,
        prompts: Sequence[str],
        behavior: Behavior,
        *,
        max_tokens: int,
        batch_size: int | None = None,
        progress: Progress = silent,
    ) -> tuple[Response, ...]:
        """Greedy responses of the model, which must have no edit live."""
        rows = model.template.encode(prompts, system=behavior.system, thinking=behavior.thinking)
        path = self._path(model, rows, {"max_tokens": max_tokens}, "responses.json")
        if path is not None and (known := _read_responses(path)) is not None and len(known) == len(rows):
            return known
        found = generate_from_tokens(model, rows, max_tokens=max_tokens, batch_size=batch_size, progress=progress)
        if path is not None:
            runs.write_json(path, [asdict(each) for each in found])
        return tuple(found)

    def reference(
        self,
        model: EditableModel,
        prompts: Sequence[str],
        behavior: Behavior,
        *,
        tokens: int = 32,
        batch_size: int | None = None,
        progress: Progress = silent,
    ) -> Reference:
        """`Reference.measure` of the model, which must have no edit live. Raises as that does."""
        rows = model.template.encode(prompts, system=behavior.system, thinking=behavior.thinking)
        path = self._path(model, rows, {"continued": tokens}, "continuations.json")
        logits = None if path is None else path.with_name("logits.safetensors")
        if path is not None and logits is not None and (known := _read_responses(path)) is not None:
            try:
                kept = load_file(logits)
                return Reference.of(
                    model, rows, known, [kept[str(index)] for index in range(len(rows))], batch_size=batch_size
                )
            except (OSError, SafetensorError, KeyError):
                pass
        found = Reference.measure(model, prompts, behavior, tokens=tokens, batch_size=batch_size, progress=progress)
        if path is not None and logits is not None:
            each = {str(index): found.logits(index).cpu().contiguous().clone() for index in range(len(rows))}
            if sum(value.numel() * value.element_size() for value in each.values()) <= MOST_BYTES:
                with runs.writing(logits) as scratch:
                    save_file(each, scratch)
                runs.write_json(path, [asdict(response) for response in found.responses])
        return found

    def _path(self, model: EditableModel, rows: Sequence[Sequence[int]], settings: object, name: str) -> Path | None:
        identity = model.identity
        if self.folder is None or identity.checkpoint_hash is None:
            return None
        packed = getattr(model.hf_model.config, "quantization_config", None)
        versions = runs.versions()
        inputs = {
            "model": [identity.config_hash, identity.checkpoint_hash, str(model.dtype), str(packed)],
            "rows": hashlib.sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest(),
            "settings": settings,
            "device": model.device.type,
            "versions": [versions.get("torch"), versions.get("transformers")],
        }
        return self.folder / runs.key(inputs) / name


def _read_responses(path: Path) -> tuple[Response, ...] | None:
    """What was kept; None where there is nothing, or nothing that can be read."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        return tuple(Response(each["text"], tuple(each["tokens"]), each["finished"]) for each in content)
    except (OSError, ValueError, KeyError, TypeError):
        return None
