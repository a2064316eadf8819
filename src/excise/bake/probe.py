"""The probe, through baking: coverage proven on weights that were written, read back, and rounded."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from excise.bake.write import bake
from excise.edit import Edit
from excise.errors import CheckpointError
from excise.model import EditableModel, load
from excise.model.precision import LARGE, parameter_count
from excise.model.probe import measure
from excise.progress import Progress, silent


def baked_leak(
    model: EditableModel,
    *,
    scratch: Path,
    seed: int = 0,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> float | None:
    """The leak of a checkpoint into which the probe itself was baked: every writer, strength 1, embeddings included.

    About 1e-7 for fp32 checkpoints; what one rounding leaves for bf16 (3e-4 at hidden size 192, less for wider models).
    The copy is written to `scratch` and removed. None for models of a billion parameters and more, where a second copy
    costs too much. Raises `CheckpointError` for a model that has no checkpoint, and what `bake` raises.
    """
    if model.path is None:
        raise CheckpointError(f"{model.name} has no checkpoint to bake into", hint="load the model from a directory")
    if parameter_count(model.hf_model) >= LARGE:
        return None
    direction = torch.randn(model.hidden, generator=torch.Generator().manual_seed(seed))
    edit = Edit.project(model.survey, direction, strength=1.0, embedding=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".probe-") as folder:
        out = Path(folder) / "model"
        bake(model.path, edit, out, trust_remote_code=trust_remote_code, progress=progress)
        baked = load(out, dtype="float32", trust_remote_code=trust_remote_code)
        return measure(baked.hf_model, model.survey, direction, seed=seed).varying
