"""What every command shares: where its output goes, how errors are told, and the exit code.

0    done
1    an error of the user's or of the environment's
2    wrong usage
3    finished, but a stated goal or a proof was missed
130  stopped by Ctrl-C
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console, RenderableType
from rich.text import Text

from excise.cli.progress import ProgressLine, Stream
from excise.errors import DiskFullError, ExciseError, InputError
from excise.progress import Progress
from excise.runs import finite

if TYPE_CHECKING:
    from excise.config import RunConfig
    from excise.model import EditableModel

USAGE = 2
MISSED = 3
STOPPED = 130
_HERE = Path(__file__).parents[1]


class StoppedError(ExciseError):
    """Ctrl-C."""


@dataclass(frozen=True)
class Outcome:
    """What a command has to say.

    data    the JSON object that `--json` prints
    shown   the same for people
    missed  goals and proofs that were not reached: they make the exit code 3
    """

    data: Mapping[str, Any]
    shown: tuple[RenderableType, ...] = ()
    missed: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Session:
    """One call of one command.

    as_json   print one JSON object instead of text
    debug     show tracebacks, and what libraries have to say
    progress  to be handed to the library
    stdout    where a command that talks meanwhile may write; what it returns is printed for it
    """

    as_json: bool
    debug: bool
    progress: Progress
    stdout: Stream

    def load_model(self, config: RunConfig, *, name: str | None = None, allow_partial: bool = True) -> EditableModel:
        """Load the model of the settings, or another one in the same way, and say so while it lasts.

        allow_partial  what makes no edit does not ask whether the model can be edited exactly
        """
        from excise.model import load

        self.progress("load", 0, 1, "model")
        its_own = {} if name is None else {"revision": None, "evidence": None}
        model = load(name or config.model, **{**config.loading(), **its_own, "allow_partial": allow_partial})
        self.progress("load", 1, 1, "model")
        return model

    def load_or_outline(self, config: RunConfig, *, weights: bool | None) -> EditableModel:
        """The model with its weights, or what its configuration alone tells; `weights` None: as there are any."""
        from excise.model.checkpoint import holds_weights, locate
        from excise.model.evidence import read_evidence
        from excise.model.outline import outline

        if weights is None:
            weights = holds_weights(locate(config.model, revision=config.revision, offline=config.offline))
        if weights:
            return self.load_model(config)
        return outline(
            config.model,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            offline=config.offline,
            evidence=() if config.evidence is None else read_evidence(config.evidence),
            allow_partial=True,
        )

    def prove(self, model: EditableModel, config: RunConfig) -> tuple[str, ...]:
        """Refuse a model that is not proven covered; with `allow_partial`, what to say about it."""
        self.progress("probe", 0, 1)
        proof = model.prove(seed=config.seed)
        self.progress("probe", 1, 1)
        if not config.allow_partial:
            proof.required()
        return () if proof.holds else (proof.doubt,)


def execute(work: Callable[[Session], Outcome], *, as_json: bool, debug: bool) -> int:
    """Do the work of a command, print what comes of it, and return the exit code.

    stdout carries the outcome alone: whatever a library prints meanwhile goes to stderr.
    """
    stdout = sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr), ProgressLine() as progress:
            outcome = work(Session(as_json=as_json, debug=debug, progress=progress, stdout=stdout))
    except KeyboardInterrupt:
        stopped = StoppedError("stopped", hint="call the same command again: it goes on from what was finished")
        return _failed(stopped, stdout, as_json=as_json, debug=debug, code=STOPPED)
    except ExciseError as error:
        return _failed(error, stdout, as_json=as_json, debug=debug, code=error.exit_code)
    except OSError as error:
        return _failed(_from_system(error), stdout, as_json=as_json, debug=debug, code=1)
    except Exception as error:  # noqa: BLE001 - the edge of the program: whatever it is, it is told, not thrown
        return _failed(_unexpected(error), stdout, as_json=as_json, debug=debug, code=1)
    _print(outcome, stdout, as_json=as_json)
    return MISSED if outcome.missed else 0


def fail(error: ExciseError, *, as_json: bool, debug: bool, code: int) -> int:
    """Tell an error on stderr (and as JSON on stdout, where that was asked for) and return the exit code."""
    return _failed(error, sys.stdout, as_json=as_json, debug=debug, code=code)


def quiet_libraries() -> None:
    """Stop Transformers, Datasets and Optuna from logging and drawing bars: this program shows its own progress."""
    warnings.simplefilter("ignore")
    for name in ("transformers", "datasets", "optuna", "huggingface_hub", "httpx", "filelock", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def quiet_imported_libraries() -> None:
    """The same for what can only be said after the import; imports Transformers and Optuna."""
    import optuna
    from transformers.utils import logging as transformers_logging

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _unexpected(error: Exception) -> ExciseError:
    """A bug: of excise, unless it happened in code that came with the model, or in what that code called."""
    told, place = f"{type(error).__name__}: {error}", None
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(_HERE):
            place = place if frame.name == "__torch_function__" else None  # only watches what the model does
        elif "transformers_modules" in path.parts:  # where Transformers keeps such code
            place = f"{path.name}, line {frame.lineno}"
    if place is None:
        return ExciseError(
            f"unexpected error: {told}", hint="this is a bug: please report it with what `--debug` prints"
        )
    return ExciseError(
        f"the code that comes with the model does not work here ({place}: {told})",
        hint="look for a newer revision of the model; `--debug` prints where it failed",
    )


def _from_system(error: OSError) -> ExciseError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            "no room left on the disk", hint="make room and call the same command again: what is finished is kept"
        )
    where = f": {error.filename}" if error.filename else ""
    return InputError(f"{error.strerror or error}{where}", hint="check that the path is there and may be used")


def _failed(error: ExciseError, stdout: Stream, *, as_json: bool, debug: bool, code: int) -> int:
    if debug:
        traceback.print_exc(file=sys.stderr)
    sys.stderr.write(f"{error}\n")
    if as_json:
        told = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
        stdout.write(json.dumps({"error": told}) + "\n")
    return code


def _print(outcome: Outcome, stdout: Stream, *, as_json: bool) -> None:
    if as_json:
        stdout.write(json.dumps(finite(outcome.data), indent=1, ensure_ascii=False) + "\n")
    else:
        # In a pipe or a file there is no edge to wrap at.
        console = Console(file=cast("IO[str]", stdout), width=None if stdout.isatty() else 200)
        for item in outcome.shown:
            console.print(item, highlight=False, soft_wrap=isinstance(item, Text))
    for missed in outcome.missed:
        sys.stderr.write(f"missed: {missed}\n")
    stdout.flush()
