"""Excise: remove one learned behavior from a language model's weights, and prove it.

The public names load on first use: `import excise` imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from excise.bake import bake, verify
    from excise.behaviors import Behavior
    from excise.config import RunConfig
    from excise.directions import Directions
    from excise.edit import Edit, Writer
    from excise.errors import ExciseError
    from excise.evaluation.evaluate import evaluate
    from excise.find import find_directions
    from excise.model import EditableModel, Survey, load
    from excise.pipeline import run
    from excise.search import search

__version__ = "0.1.0"

_HOME = {
    "Behavior": "excise.behaviors",
    "Directions": "excise.directions",
    "Edit": "excise.edit",
    "EditableModel": "excise.model",
    "ExciseError": "excise.errors",
    "RunConfig": "excise.config",
    "Survey": "excise.model",
    "Writer": "excise.edit",
    "bake": "excise.bake",
    "evaluate": "excise.evaluation",
    "find_directions": "excise.find",
    "load": "excise.model",
    "run": "excise.pipeline",
    "search": "excise.search",
    "verify": "excise.bake",
}

__all__ = [
    "Behavior",
    "Directions",
    "Edit",
    "EditableModel",
    "ExciseError",
    "RunConfig",
    "Survey",
    "Writer",
    "__version__",
    "bake",
    "evaluate",
    "find_directions",
    "load",
    "run",
    "search",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'excise' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
