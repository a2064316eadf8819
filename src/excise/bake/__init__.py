"""Baking an edit into a checkpoint, and proving the result. The package is callable: `excise.bake(...)`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from excise.bake.probe import baked_leak
from excise.bake.result import Check, Difference, VerifyReport
from excise.bake.verification import verify
from excise.bake.write import BakeReport, bake

__all__ = ["BakeReport", "Check", "Difference", "VerifyReport", "bake", "baked_leak", "verify"]


class _CallableModule(ModuleType):
    """`excise.bake` names both this package and its function; whichever was imported, it can be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> BakeReport:
        return bake(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
