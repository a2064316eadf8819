"""From a name to a directory: a local path as it is, or a model of the Hugging Face Hub, downloaded once."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from excise.errors import ModelError

# Weights as safetensors, and everything small that a baked copy carries along; never pickles.
_SMALL = ("*.json", "*.model", "*.txt", "*.jinja", "*.py", "*.md", "*.tiktoken", "LICENSE*")
_WEIGHTS = ("*.safetensors",)
_UNWANTED = ("consolidated*", "original/*", "onnx/*", "*/onnx/*", "openvino/*", "*.gguf", "*.bin", "*.pth", "*.pt")


def locate(
    name_or_path: str | Path, *, revision: str | None = None, offline: bool = False, weights: bool = True
) -> Path:
    """The local directory of a model.

    name_or_path  a directory, or the id of a model on the Hub (then `revision` is its branch, tag or commit)
    offline       use only what was downloaded before
    weights       whether the weights are downloaded as well

    Raises `ModelError` for a path that is not there or not a directory, an id that is not one, a repository or revision
    that does not exist, is gated, or cannot be reached.
    """
    name = str(name_or_path)
    path = Path(name).expanduser()
    if path.is_dir():
        return path.absolute()
    if path.exists():
        raise ModelError(f"{name} is a file, not a model directory", hint="give the directory that holds config.json")
    if isinstance(name_or_path, Path) or _looks_like_path(name):
        raise ModelError(f"there is no directory {name}", hint="check the path of the model")
    return _download(name, revision, offline, (*_SMALL, *_WEIGHTS) if weights else _SMALL)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "~", "/", "\\")) or name.count("/") > 1 or "\\" in name or ":" in name


def _download(name: str, revision: str | None, offline: bool, wanted: tuple[str, ...]) -> Path:
    at = f" at revision {revision}" if revision else ""
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                local_files_only=offline,
                allow_patterns=list(wanted),
                ignore_patterns=list(_UNWANTED),
            )
        )
    except HFValidationError as error:
        raise ModelError(
            f"there is no directory {name!r}, and it is not a Hub id", hint="give a directory, or an id like org/model"
        ) from error
    except GatedRepoError as error:
        raise ModelError(
            f"{name} is gated", hint=f"accept its terms at https://huggingface.co/{name}, then run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{name} has no revision {revision}", hint="give a branch, tag or commit of it") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"there is no directory {name} here, and no such model on the Hub",
            hint="check the name; for a private model run `hf auth login`",
        ) from error
    except LocalEntryNotFoundError as error:
        hint = "repeat without --offline" if offline else "check the network, or give a local directory"
        raise ModelError(f"{name}{at} is not on this machine, and was not downloaded", hint=hint) from error
    except OSError as error:  # every network error of huggingface_hub is one
        raise ModelError(f"{name}{at} could not be downloaded: {error}", hint="check the network") from error
