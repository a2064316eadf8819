"""`Directions`: one unit vector per position and layer, and which of them to use."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from excise.directions.methods import method_named
from excise.directions.selection import select
from excise.directions.separability import Separability
from excise.errors import InputError

SCHEMA = 1
_HEADER = "excise_directions"


@dataclass(frozen=True)
class Directions:
    """Directions of one behavior in one model, by position and layer (the stream after that layer), fp32 on the CPU.

    vectors        unit vectors; zero where target and baseline do not differ
    positions      the names of the positions
    method         how they were found
    target_mean, baseline_mean  mean residuals they come from, so that other methods need no second pass
    separability   how well each tells target from baseline prompts
    best           (position index, layer) of the direction that `at_layer` gives for every writer
    """

    vectors: Float[Tensor, "position layer hidden"]
    positions: tuple[str, ...]
    method: str
    target_mean: Float[Tensor, "position layer hidden"]
    baseline_mean: Float[Tensor, "position layer hidden"]
    separability: Separability
    best: tuple[int, int]

    @classmethod
    def of_means(
        cls,
        target_mean: Float[Tensor, "position layer hidden"],
        baseline_mean: Float[Tensor, "position layer hidden"],
        *,
        positions: tuple[str, ...],
        method: str,
        separability: Separability,
        best: tuple[int, int] | None = None,
    ) -> Directions:
        """Directions from mean residuals; `best` is selected where it is not given. Raises `InputError`."""
        vectors = unit(method_named(method)(target_mean.double(), baseline_mean.double()))
        chosen = select(separability, vectors, positions) if best is None else best
        return cls(vectors, positions, method, target_mean.float(), baseline_mean.float(), separability, chosen)

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.vectors.shape[1]

    def at_layer(self, layer: int) -> Float[Tensor, " hidden"]:  # noqa: ARG002 - one direction everywhere
        """The best direction, the same for the writers of every layer (Arditi et al. 2024)."""
        return self.vectors[self.best]

    def vector(self, position: int, layer: float) -> Float[Tensor, " hidden"]:
        """The unit direction of a position between two layers: interpolated linearly, then normalised."""
        layer = min(max(layer, 0.0), self.layers - 1.0)
        below = math.floor(layer)
        share = layer - below
        lower, upper = self.vectors[position, below], self.vectors[position, min(below + 1, self.layers - 1)]
        mixed = (1 - share) * lower + share * upper
        length = float(mixed.norm())
        return mixed / length if length > 1e-6 else (lower if share < 0.5 else upper)

    def selected(self, position: int, layer: int) -> Directions:
        """The same directions with another best one. Raises `InputError` where there is none."""
        if not (0 <= position < len(self.positions) and 0 <= layer < self.layers):
            raise InputError(
                f"there is no direction at position index {position}, layer {layer}",
                hint=f"positions: {', '.join(self.positions)}; layers: 0 to {self.layers - 1}",
            )
        return replace(self, best=(position, layer))

    def with_method(self, method: str) -> Directions:
        """What another method finds in the same activations, with the same best place. Raises `InputError`."""
        if method == self.method:
            return self
        return Directions.of_means(
            self.target_mean,
            self.baseline_mean,
            positions=self.positions,
            method=method,
            separability=self.separability,
            best=self.best,
        )

    def per_layer(self, position: int | None = None) -> PerLayer:
        """Each layer's own direction for its writers, at one position (by default the best one's)."""
        return PerLayer(self.vectors[self.best[0] if position is None else position])

    def cosine(self, position: int | None = None) -> Float[Tensor, "layer layer"]:
        """Cosines between the directions of all layers at one position (by default the best one's)."""
        rows = self.vectors[self.best[0] if position is None else position]
        return rows @ rows.T

    def digest(self) -> str:
        """A SHA-256 of the vectors and of the choice among them."""
        digest = hashlib.sha256(json.dumps([self.method, *self.positions, *self.best]).encode())
        digest.update(self.vectors.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def to_json(self) -> dict[str, Any]:
        """What a report shows, as JSON values."""
        return {
            "method": self.method,
            "positions": list(self.positions),
            "best": {"position": self.positions[self.best[0]], "layer": self.best[1]},
            "separability": self.separability.to_json(self.positions),
            "cosine": [[round(value, 4) for value in row] for row in self.cosine().tolist()],
        }

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with a JSON header; the name appears only when the file is whole."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: getattr(self, name) for name in ("vectors", "target_mean", "baseline_mean")}
        tensors |= {field.name: getattr(self.separability, field.name) for field in fields(Separability)}
        header = {
            "schema": SCHEMA,
            "positions": list(self.positions),
            "method": self.method,
            "best": list(self.best),
        }
        scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, scratch, metadata={_HEADER: json.dumps(header)})
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Directions:
        """Read what `save` wrote. Raises `InputError` for anything else."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"no directions at {path}", hint="give the path of a file that `excise find` wrote")
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
                tensors = {key: file.get_tensor(key) for key in file.keys()} if header else {}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not a readable safetensors file ({error})", hint="find them again") from error
        if not header:
            raise InputError(f"{path} holds no directions", hint="give the path of a file that `excise find` wrote")
        if header["schema"] > SCHEMA:
            raise InputError(f"{path} was written by a newer excise (schema {header['schema']})", hint="upgrade excise")
        return cls(
            vectors=tensors["vectors"],
            positions=tuple(header["positions"]),
            method=header["method"],
            target_mean=tensors["target_mean"],
            baseline_mean=tensors["baseline_mean"],
            separability=Separability(**{field.name: tensors[field.name] for field in fields(Separability)}),
            best=(header["best"][0], header["best"][1]),
        )


@dataclass(frozen=True)
class PerLayer:
    """Each layer's own direction; embeddings get that of the first layer."""

    vectors: Float[Tensor, "layer hidden"]

    def at_layer(self, layer: int) -> Float[Tensor, " hidden"]:
        """The direction for the writers of one layer."""
        return self.vectors[max(layer, 0)]


@dataclass(frozen=True)
class Everywhere:
    """One direction for the writers of every layer."""

    direction: Float[Tensor, " hidden"]

    def at_layer(self, layer: int) -> Float[Tensor, " hidden"]:  # noqa: ARG002 - the same everywhere
        """The direction."""
        return self.direction


def unit(vectors: Float[Tensor, "*place hidden"]) -> Float[Tensor, "*place hidden"]:
    """Vectors of length 1 in fp32; those that are nothing but rounding become zero."""
    length = vectors.norm(dim=-1, keepdim=True)
    noise = length <= 1e-9 * length.max()
    return torch.where(noise, torch.zeros_like(vectors), vectors / length.masked_fill(noise, 1.0)).float()
