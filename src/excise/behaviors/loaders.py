"""Readers of prompt files and datasets; `pyarrow` and `datasets` do the work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from excise.errors import PromptError

_USUAL_COLUMNS = ("prompt", "text", "instruction", "question", "goal", "input")


def looks_like_file(location: str) -> bool:
    """Whether a location can only mean a file on this machine: by its suffix, or by more than one slash."""
    return Path(location).suffix.lower() in {*_TABLES, ".txt", ".text"} or location.partition("[")[0].count("/") > 1


def read_file(path: Path, *, column: str | None) -> list[str]:
    """Prompts of a local file, by its suffix; anything that is not a table is plain text, one prompt per line."""
    reader = _TABLES.get(path.suffix.lower())
    if reader is not None:
        if path.stat().st_size == 0:
            raise PromptError(f"{path} is empty", hint="give one prompt per row")
        return _column(_read_table(path, reader), column=column, where=str(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{path} is not UTF-8 text (byte {error.start})",
            hint=f"convert it: iconv -f ISO-8859-1 -t UTF-8 {path.name} > prompts.txt",
        ) from error
    return text.split("\n")


def read_dataset(
    name: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    split: str | None = None,
    column: str | None = None,
    offline: bool = False,
) -> list[str]:
    """Prompts of a dataset on the Hub or in a local directory; split `train` unless another is named."""
    from datasets import config as settings
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    where = f"{name}[{split or 'train'}]"
    if offline and not settings.HF_HUB_OFFLINE and not Path(name).is_dir():
        raise PromptError(
            f"the dataset {where} is on the Hub, and this run is offline",
            hint="give prompt files, or set HF_HUB_OFFLINE=1 before Python starts to use what was downloaded before",
        )
    try:
        dataset = load_dataset(name, name=config, revision=revision, split=split or "train")
    except ValueError as error:  # an unknown split or configuration
        raise PromptError(
            f"the dataset {where} cannot be used: {error}", hint="name a split: owner/name[test]"
        ) from error
    except (OSError, DatasetsError) as error:  # not found, no network, not in the cache, files that cannot be read
        raise PromptError(
            f"the dataset {where} cannot be loaded: {_first_line(error)}",
            hint="check its name, and the network; or give prompt files: --target FILE --baseline FILE",
        ) from error
    if column is None:
        text_columns = [key for key, feature in dataset.features.items() if getattr(feature, "dtype", "") == "string"]
        column = _choose(text_columns, where=where)
    if column not in dataset.column_names:
        raise _unknown_column(column, list(dataset.column_names), where=where)
    return _texts(list(dataset[column]), column=column, where=where)


def _read_table(path: Path, reader: Callable[[Path], Any]) -> Any:
    from pyarrow.lib import ArrowException

    try:
        return reader(path)
    except (ArrowException, UnicodeDecodeError) as error:
        raise PromptError(
            f"{path} cannot be read as {path.suffix[1:]}: {_first_line(error)}",
            hint="it must be UTF-8 and whole; plain text needs the suffix .txt",
        ) from error


def _read_jsonl(path: Path) -> Any:
    from pyarrow import json

    return json.read_json(path)


def _read_csv(path: Path) -> Any:
    from pyarrow import csv

    # Prompts may hold line breaks inside quotes.
    return csv.read_csv(path, parse_options=csv.ParseOptions(newlines_in_values=True))


def _read_parquet(path: Path) -> Any:
    from pyarrow import parquet

    return parquet.read_table(path)


_TABLES: dict[str, Callable[[Path], Any]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _column(table: Any, *, column: str | None, where: str) -> list[str]:
    from pyarrow import types

    if column is None:
        is_text = (types.is_string, types.is_large_string)
        text_columns = [field.name for field in table.schema if any(check(field.type) for check in is_text)]
        column = _choose(text_columns, where=where)
    if column not in table.column_names:
        raise _unknown_column(column, list(table.column_names), where=where)
    return _texts(table.column(column).to_pylist(), column=column, where=where)


def _choose(text_columns: list[str], *, where: str) -> str:
    usual = [column for column in _USUAL_COLUMNS if column in text_columns]
    if usual or len(text_columns) == 1:
        return usual[0] if usual else text_columns[0]
    raise PromptError(
        f"{where} has {'several text columns: ' + ', '.join(text_columns) if text_columns else 'no text column'}",
        hint="say which one holds the prompts: --column NAME",
    )


def _texts(values: list[Any], *, column: str, where: str) -> list[str]:
    present = [value for value in values if value is not None]
    wrong = next((value for value in present if not isinstance(value, str)), None)
    if wrong is not None:
        raise PromptError(
            f"the column '{column}' of {where} holds {type(wrong).__name__}, not text",
            hint="name the column of the prompts: --column NAME",
        )
    return present


def _unknown_column(column: str, columns: list[str], *, where: str) -> PromptError:
    return PromptError(f"{where} has no column '{column}'", hint=f"it has: {', '.join(columns)}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
