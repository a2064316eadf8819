"""The base model of a bake: its directory, headers, architecture and side files; no weight is read."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excise.bake.formats import FORMATS, Format
from excise.bake.keys import KeyMap
from excise.bake.plan import TensorEdit, plan
from excise.edit import Edit
from excise.errors import CheckpointError
from excise.model.checkpoint import Checkpoint, TensorEntry, locate, model_identity, read_header
from excise.model.load import auto_class_for, read_config, skeleton

if TYPE_CHECKING:
    from excise.model import EditableModel

# Weights that are not copied: they would carry the behavior along, unedited.
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".onnx_data", ".h5", ".msgpack", ".tflite", ".ot")
LAST = ("model.safetensors.index.json", "config.json")


@dataclass(frozen=True)
class Source:
    """A base model on disk."""

    directory: Path
    name: str
    revision: str | None
    config: Any
    checkpoint: Checkpoint
    keys: KeyMap

    @classmethod
    def open(
        cls,
        model: str | Path | EditableModel,
        *,
        revision: str | None = None,
        offline: bool = False,
        trust_remote_code: bool = False,
    ) -> Source:
        """Locate a model and read everything but its weights.

        Raises `ModelError` (not there, or not a language model) and `CheckpointError` (weights damaged, or a model that
        exists in memory alone).
        """
        if isinstance(model, str | Path):
            directory, name = locate(model, revision=revision, offline=offline), str(model)
        elif model.path is None:
            raise CheckpointError(
                "this model has no checkpoint directory: it came from memory",
                hint="save it with save_pretrained and bake from that directory",
            )
        else:
            directory, name, revision = Path(model.path), model.name, model.revision
        checkpoint = Checkpoint.open(directory)
        config = read_config(directory, trust_remote_code)
        architecture = skeleton(config, auto_class_for(config, directory), trust_remote_code=trust_remote_code)
        shapes = {key: entry.shape for key, entry in checkpoint.tensors.items()}
        return cls(directory, name, revision, config, checkpoint, KeyMap(architecture, shapes))

    def plan(self, edit: Edit, *, force: bool = False) -> dict[str, PlannedTensor]:
        """What an edit changes here, by checkpoint key.

        Raises `EditMismatchError` for an edit of another model (`force` allows other weights of the same architecture),
        `CheckpointError` for tensors in a format that cannot be edited.
        """
        mine = model_identity(self.config, name=self.name, revision=self.revision, directory=self.directory)
        (replace(edit.identity, checkpoint_hash=None) if force else edit.identity).check(mine)
        try:
            return {key: self._planned(key, tensor) for key, tensor in plan(edit, self.keys).items()}
        except CheckpointError as error:
            if getattr(self.config, "quantization_config", None) is None:
                raise
            raise CheckpointError(
                f"{self.name} is stored quantised, and cannot be edited in place yet ({error.message})",
                hint="use the version that is not quantised: --quantize packs it while it is searched, and it is baked "
                "at its own precision",
            ) from error

    def _planned(self, key: str, edit: TensorEdit) -> PlannedTensor:
        entry = self.checkpoint.tensors[key]
        for candidate in FORMATS:
            if candidate.holds(self.checkpoint, entry):
                return PlannedTensor(entry, edit, candidate)
        known = ", ".join(candidate.name for candidate in FORMATS)
        raise CheckpointError(
            f"{key} is stored as {entry.dtype}, which cannot be edited in place yet",
            hint=f"bake from a version of the model in one of: {known}",
        )

    def side_files(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Everything in the directory that goes along unchanged, and the weights that must not (relative names)."""
        copied: list[str] = []
        skipped: list[str] = []
        for folder, folders, files in os.walk(self.directory):
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
            for file in sorted(files):
                path = Path(folder, file)
                name = path.relative_to(self.directory).as_posix()
                if name in self.checkpoint.files or not path.is_file():
                    continue
                (skipped if self._is_other_copy(path) else copied).append(name)
        copied.sort(key=lambda name: LAST.index(name) if name in LAST else -1)
        return tuple(copied), tuple(skipped)

    def _is_other_copy(self, path: Path) -> bool:
        if path.name.endswith((".bin.index.json", ".h5.index.json")):
            return True
        if path.suffix != ".safetensors":
            return path.suffix in _OTHER_WEIGHTS
        if path.name.startswith("consolidated"):
            return True
        return any(entry.key in self.checkpoint.tensors for entry in read_header(path).tensors)


@dataclass(frozen=True)
class PlannedTensor:
    """One stored tensor that changes, how, and in which format it is."""

    entry: TensorEntry
    edit: TensorEdit
    format: Format
