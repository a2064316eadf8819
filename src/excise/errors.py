"""Every error a user can meet, as one tree.

    ExciseError                    message + hint + exit code
    ├── InputError                 a file, prompt set or option that cannot be used
    │   ├── PromptError            an empty, unreadable, overlapping or too small set of prompts
    │   ├── BehaviorError          a behavior definition that is unknown or not valid
    │   └── OutputExistsError      the output directory is already there
    ├── ModelError                 a model that cannot be loaded or understood
    │   ├── CheckpointError        a truncated, corrupted or unsupported weight file
    │   ├── SurveyError            not every writer could be found, or proven
    │   └── SharedBatchError       several edits that cannot be computed in one batch
    ├── EditError                  an edit file that cannot be read
    │   └── EditMismatchError      an edit that was made for another model
    ├── ScorerError                a registered scorer that failed, or returned something else than it should
    ├── BehaviorNotShownError      the model does not show the behavior that is to be removed
    ├── VerificationError          a baked model failed one of its checks
    ├── DiskFullError              no room left for what must be written
    ├── MissingExtraError          an optional package is needed
    └── InterruptedRunError        stopped by the user; the next call resumes

Errors are raised where they are known and rendered once, at the edge of the command line.
"""

from __future__ import annotations


class ExciseError(Exception):
    """Something the user can act on: `message` says what is wrong, `hint` what to do."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n\nhint: {self.hint}"


class InputError(ExciseError):
    """A file, prompt set or option that cannot be used."""


class PromptError(InputError):
    """A set of prompts that is empty, unreadable, overlapping or too small."""


class BehaviorError(InputError):
    """A behavior definition that is unknown or not valid."""


class OutputExistsError(InputError):
    """The output directory is already there and holds something else."""


class ModelError(ExciseError):
    """A model that cannot be loaded or understood."""


class CheckpointError(ModelError):
    """A weight file that is truncated, corrupted, or of a kind that is not supported."""


class SurveyError(ModelError):
    """Not every writer of the residual stream could be found, or proven by the probe."""


class SharedBatchError(ModelError):
    """Several edits that cannot be computed in one batch; one at a time always works."""

    def __init__(self, message: str, *, module: str = "") -> None:
        super().__init__(message, hint="apply one edit at a time, or let `EditableModel.measure_each` choose")
        self.module = module


class EditError(ExciseError):
    """An edit file that cannot be read."""


class EditMismatchError(EditError):
    """An edit that was made for another model."""


class ScorerError(ExciseError):
    """A registered scorer failed, or returned something else than it should."""


class BehaviorNotShownError(ExciseError):
    """The model hardly shows the behavior that is to be removed."""


class VerificationError(ExciseError):
    """A baked model failed one of its checks."""

    exit_code = 3


class DiskFullError(ExciseError):
    """No room left for what must be written."""


class MissingExtraError(ExciseError):
    """An optional package is needed for what was asked."""

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(f"this needs the package `{package}`", hint=f"pip install 'excise[{extra}]'")


class InterruptedRunError(ExciseError):
    """Stopped by the user. What was finished is kept, and the next call resumes."""
