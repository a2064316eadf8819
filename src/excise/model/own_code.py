"""Code that comes with a checkpoint: when it is needed, and what is said where it fails."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.utils.hub import TRANSFORMERS_DYNAMIC_MODULE_NAME

from excise.errors import ExciseError, ModelError

_FETCH = "download the model again, with all of its .py files"


def needs_own_code(settings: Mapping[str, Any]) -> bool:
    """Whether a model cannot be built without the code that comes with it.

    Many checkpoints still carry the code of the time before Transformers had their architecture.
    """
    if not settings.get("auto_map"):
        return False
    architectures = settings.get("architectures") or [None]
    known = all(isinstance(name, str) and hasattr(transformers, name) for name in architectures)
    return not (known and is_known_type(settings))


def is_known_type(settings: Mapping[str, Any]) -> bool:
    """Whether Transformers itself has a configuration of this model type."""
    return str(settings.get("model_type")) in CONFIG_MAPPING


@dataclass(frozen=True)
class OwnCode:
    """One class that a checkpoint brings along.

    reference    as config.json names it: `file.Class`, or `org/repository--file.Class`
    written_for  the version of Transformers that wrote config.json, where it says so
    """

    directory: Path
    reference: str
    written_for: str | None

    @classmethod
    def named(cls, settings: Mapping[str, Any], directory: Path, auto_class: str) -> OwnCode | None:
        """What config.json names for an auto class, or None."""
        named = settings.get("auto_map")
        reference = named.get(auto_class) if isinstance(named, Mapping) else None
        return None if reference is None else cls(directory, str(reference), settings.get("transformers_version"))

    @property
    def repository(self) -> str | None:
        """The other repository of the Hub that holds the code, if it is not the checkpoint's own."""
        return self.reference.partition("--")[0] if "--" in self.reference else None

    @property
    def file(self) -> str:
        """The name of the file that holds the class."""
        return self.reference.rpartition("--")[2].partition(".")[0] + ".py"

    def check(self) -> None:
        """Raise `ModelError` where the file is not there."""
        if self.repository is None and not (self.directory / self.file).is_file():
            raise ModelError(
                f"config.json of {self.directory.name} names {self.reference}; there is no {self.file} beside it",
                hint=_FETCH,
            )

    def failed(self, error: Exception) -> NoReturn:
        """Raise the `ModelError` that says what is wrong with the code."""
        message = f"the code that comes with {self.directory.name} does not work here ({self._where(error)})"
        if isinstance(error, OSError):
            hint = _FETCH if self.repository is None else f"fetch it once: hf download {self.repository}"
        else:
            known = self.written_for not in (None, transformers.__version__)
            made = f" (it was made with {self.written_for})" if known else ""
            hint = (
                f"it may be damaged, or for another Transformers than {transformers.__version__}{made}: "
                "look for a newer revision of the model"
            )
        raise ModelError(message, hint=hint) from error

    def _where(self, error: Exception) -> str:
        if isinstance(error, SyntaxError):
            place = Path(error.filename).name if error.filename and error.filename != "<unknown>" else self.file
            return f"{place}, line {error.lineno}: {type(error).__name__}: {error.msg}"
        place, trace = "", error.__traceback__
        while trace is not None:
            path = Path(trace.tb_frame.f_code.co_filename)
            if TRANSFORMERS_DYNAMIC_MODULE_NAME in path.parts:
                place = f"{path.name}, line {trace.tb_lineno}: "
            trace = trace.tb_next
        return f"{place}{type(error).__name__}: {first_line(error)}"


@contextmanager
def explained(name: str, own: OwnCode | None = None) -> Iterator[None]:
    """Tells what keeps a model from being built: a package that is not installed (a vision tower may need timm), or a
    fault in the code that it brings along. Raises `ModelError` for both.

    own  the class that is used, where it is the checkpoint's own
    """
    if own is not None:
        own.check()
    try:
        yield
    except (ExciseError, MemoryError, torch.OutOfMemoryError):
        raise
    except ImportError as error:
        needed = sorted(set(re.findall(r"pip install ([\w.-]+(?: [\w.-]+)*)", str(error))))
        absent = isinstance(error, ModuleNotFoundError) and "." not in (error.name or "")
        if own is not None and not (needed or absent):
            own.failed(error)  # something that another version of an installed package has
        hint = f"pip install {' '.join(needed)}" if needed else "install what it asks for"
        raise ModelError(f"{name} needs a package that is not installed ({first_line(error)})", hint=hint) from error
    except Exception as error:
        if own is None:
            raise
        own.failed(error)


def first_line(error: Exception) -> str:
    """The first line of a message that says anything."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


__all__ = ["OwnCode", "explained", "first_line", "is_known_type", "needs_own_code"]
