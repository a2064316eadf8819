"""Readers of prompt files and datasets, as tables; `pyarrow` and `datasets` do the work."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from excise.errors import PromptError

TEXT_COLUMN = "prompt"
"""The one column of plain text."""


@dataclass(frozen=True)
class Table:
    """Rows of prompts before it is known which column holds them.

    where    what to call it in errors
    columns  their names
    kinds    "text", "chat" (lists of messages) or "other" for each column
    column   all values of one, top to bottom
    """

    where: str
    columns: tuple[str, ...]
    kinds: tuple[str, ...]
    column: Callable[[str], list[Any]]

    def of_kind(self, *kinds: str) -> list[str]:
        """The names of the columns of these kinds."""
        return [name for name, kind in zip(self.columns, self.kinds, strict=True) if kind in kinds]


def looks_like_file(location: str) -> bool:
    """Whether a location can only mean a file on this machine: by its suffix, or by more than one slash."""
    return Path(location).suffix.lower() in {*_TABLES, ".txt", ".text"} or location.partition("[")[0].count("/") > 1


def read_file(path: Path) -> Table:
    """A local file, by its suffix; anything that is not a table is plain text, one prompt per line."""
    reader = _TABLES.get(path.suffix.lower())
    if reader is None:
        return _text_table(_decoded(path.read_bytes(), str(path)), str(path))
    if path.stat().st_size == 0:
        raise PromptError(f"{path} is empty", hint="give one prompt per row")
    return _read_table(path.read_bytes(), reader, str(path))


def read_stdin() -> Table:
    """Standard input: JSON (lines or one document) where it begins like it, else one prompt per line. Read once."""
    text = _whole(cast("io.TextIOBase", sys.stdin))
    if text.lstrip()[:1] in ("{", "["):
        return _read_table(text.encode(), _read_json, "standard input")
    return _text_table(text, "standard input")


def read_dataset(
    name: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    split: str | None = None,
    offline: bool = False,
) -> Table:
    """A dataset on the Hub or in a local directory; split `train` unless another is named."""
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
    kinds = tuple(_kind(field.type) for field in dataset.features.arrow_schema)
    return Table(where, tuple(dataset.column_names), kinds, lambda name: list(dataset[name]))


def _read_table(content: bytes, reader: Callable[[bytes], Any], where: str) -> Table:
    from pyarrow.lib import ArrowException

    try:
        return _arrow_table(reader(content), where)
    except (ArrowException, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PromptError(
            f"{where} cannot be read as {Path(where).suffix[1:] or 'JSON'}: {_first_line(error)}",
            hint="it must be UTF-8 and whole; plain text needs the suffix .txt",
        ) from error


def _read_jsonl(content: bytes) -> Any:
    from pyarrow import json as arrow_json

    return arrow_json.read_json(io.BytesIO(content))


def _read_json(content: bytes) -> Any:
    """One document (a list of texts or of rows, an object of columns, or one that holds such a list); else lines."""
    try:
        document = json.loads(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # a second document: one per line
            return _read_jsonl(content)
        raise
    return _of_document(document)


def _of_document(document: Any) -> Any:
    import pyarrow as pa

    if isinstance(document, dict):
        lists = {key: value for key, value in document.items() if isinstance(value, list)}
        if len(lists) == 1 and all(isinstance(row, dict) and "role" not in row for row in next(iter(lists.values()))):
            return _of_document(next(iter(lists.values())))
        if lists and len({len(value) for value in lists.values()}) == 1 and len(lists) == len(document):
            return pa.table(lists)
        return pa.Table.from_pylist([document])  # one row
    if isinstance(document, list) and all(isinstance(row, str) for row in document):
        return pa.table({TEXT_COLUMN: pa.array(document, pa.string())})
    if isinstance(document, list) and all(isinstance(row, dict) for row in document):
        names = list(dict.fromkeys(key for row in document for key in row))
        return pa.table({name: [row.get(name) for row in document] for name in names})
    raise json.JSONDecodeError("neither a list of prompts nor rows of them", "", 0)


def _read_csv(content: bytes) -> Any:
    from pyarrow import csv

    # Prompts may hold line breaks inside quotes.
    return csv.read_csv(io.BytesIO(content), parse_options=csv.ParseOptions(newlines_in_values=True))


def _read_parquet(content: bytes) -> Any:
    from pyarrow import BufferReader, parquet

    return parquet.read_table(BufferReader(content))


_TABLES: dict[str, Callable[[bytes], Any]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _arrow_table(table: Any, where: str) -> Table:
    def values(name: str) -> list[Any]:
        found: list[Any] = table.column(name).to_pylist()
        return found

    kinds = tuple(_kind(field.type) for field in table.schema)
    return Table(where, tuple(table.column_names), kinds, values)


def _kind(kind: Any) -> str:
    from pyarrow import types

    if types.is_string(kind) or types.is_large_string(kind):
        return "text"
    is_list = types.is_list(kind) or types.is_large_list(kind)
    if is_list and types.is_struct(kind.value_type) and kind.value_type.get_field_index("role") >= 0:
        return "chat"
    return "other"


def _text_table(text: str, where: str) -> Table:
    lines = text.split("\n")
    return Table(where, (TEXT_COLUMN,), ("text",), lambda _: lines)


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{where} is not UTF-8 text (byte {error.start})",
            hint=f"convert it: iconv -f ISO-8859-1 -t UTF-8 {Path(where).name} > prompts.txt",
        ) from error


@lru_cache(maxsize=1)
def _whole(stream: io.TextIOBase) -> str:
    """All that a stream holds; kept, because it can be read once."""
    try:
        return stream.read()
    except UnicodeDecodeError as error:
        raise PromptError("standard input is not UTF-8 text", hint="give UTF-8 text, one prompt per line") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def unknown_column(column: str, columns: Sequence[str], *, where: str) -> PromptError:
    """The error for a column that is not there."""
    return PromptError(f"{where} has no column '{column}'", hint=f"it has: {', '.join(columns)}")
