"""Scorers from code that is not part of this package: imported, so that it can register them."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from excise.errors import InputError
from excise.evaluation.requested import score_names

_PREFIX = "excise_scorers:"


def load_scorers(modules: Sequence[str]) -> None:
    """Import what registers scorers: module names, or paths of Python files, each once per process.

    It is code of the user's own choice, and runs as such. Raises `InputError`, which says where it failed.
    """
    for module in modules:
        if module.endswith(".py"):
            _load_file(module)
        else:
            _load_module(module)


def _load_file(given: str) -> None:
    path = Path(given).expanduser().resolve()
    name = f"{_PREFIX}{path}"
    if name in sys.modules:
        return
    if not path.is_file():
        raise InputError(f"no file of scorers at {given}", hint="give the path of a Python file, or a module's name")
    known = score_names()
    specification = spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = module_from_spec(specification)
    sys.modules[name] = module  # before it runs, as an import does: dataclasses look their module up
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        raise _failed(f"{given}{f', line {lines[-1]}' if lines else ''}", error) from error
    if score_names() == known:
        del sys.modules[name]
        raise InputError(
            f"{given} registers no scorer",
            hint="decorate a function with `@excise.evaluation.scorer(NAME)` or `@labeller(NAME)`",
        )


def _load_module(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:
        raise _failed(name, error) from error


def _failed(what: str, error: Exception) -> InputError:
    return InputError(
        f"the scorers of {what} cannot be imported: {type(error).__name__}: {error}",
        hint="this is code of your own: mend it, or give the path of its file, such as scorers/judge.py",
    )
