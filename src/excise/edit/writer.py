"""A writer: one parameter whose product is added to the residual stream."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Role = Literal["attention", "mlp", "expert", "mixer", "embedding"]
ROLES: tuple[Role, ...] = get_args(Role)
EMBEDDING_LAYER = -1


@dataclass(frozen=True)
class Writer:
    """Where one parameter writes to the residual stream, and how it lies in memory.

    parameter    its name in the loaded Transformers model (not the key in the checkpoint)
    layer        index of its decoder layer; -1 for embeddings
    role         what kind of sublayer it ends
    axis         the axis of the parameter that is the residual axis (length: hidden size)
    expert_axis  the axis that counts experts in a fused bank, else None
    bias         the parameter added to the product before it is written, else None
    gain         the parameter of the gained norm (or learned scale) between it and the residual add, else None
    module       the module whose output is this write, where hooks can act; None: only the weight itself can be changed
    tied         other names of the same tensor (a tied LM head): they change with it
    """

    parameter: str
    layer: int
    role: Role
    axis: int
    expert_axis: int | None = None
    bias: str | None = None
    gain: str | None = None
    module: str | None = None
    tied: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that `from_json` turns back into the same writer."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Writer:
        """The writer that `to_json` described; unknown keys of later versions are ignored."""
        known = {key: value for key, value in data.items() if key in cls.__dataclass_fields__}
        return cls(**{**known, "tied": tuple(known.get("tied", ()))})
