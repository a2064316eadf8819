"""The table of docs/architectures.md: written from what is measured, and compared with it.

python tests/zoo/document.py      measure every architecture (some minutes) and write the table again
"""

from __future__ import annotations

import re
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from zoo.measure import Row, measure
from zoo.scope import IN_SCOPE, OUT_OF_SCOPE, VARIANTS

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "architectures.md"
_ROLES = ("embedding", "attention", "mlp", "expert", "mixer")
_HEADER = f"| architecture | {' | '.join(_ROLES)} | leak live | leak baked | batches | notes |"
_BEGIN, _END = "<!-- generated: {} -->", "<!-- end -->"


def line(row: Row) -> str:
    """The row as it stands in the table."""
    writers = dict(row.writers)
    counts = [str(writers.get(role, "")) for role in _ROLES]
    notes = "; ".join([*(f"**refused**: {reason}" for reason in row.refused), *row.notes])
    batches = "padded" if row.padded else "equal lengths"
    cells = [row.kind, *counts, _leak(row.leak), "" if row.baked is None else _leak(row.baked), batches, notes]
    return f"| {' | '.join(cells)} |"


def _leak(value: float) -> str:
    """The power of ten that a leak stays below, if it is a proof: the figure itself differs from machine to machine."""
    return next((f"< {bound}" for bound in ("1e-6", "1e-5", "1e-4") if value < float(bound)), "> 1e-4")


def documented() -> dict[str, str]:
    """The lines of the table as the page has them, by architecture."""
    section = _section(PAGE.read_text(encoding="utf-8"), "table")
    return {row.split("|")[1].strip(): row for row in section.splitlines() if row.startswith("| ")}


def out_of_scope() -> str:
    """The list of what is no decoder, by reason."""
    reasons: dict[str, list[str]] = {}
    for kind, reason in OUT_OF_SCOPE.items():
        reasons.setdefault(reason, []).append(kind)
    return "\n".join(f"- {reason}: {', '.join(sorted(kinds))}" for reason, kinds in reasons.items())


def write(rows: list[Row]) -> None:
    """Put the table and the list into the page."""
    table = "\n".join([_HEADER, "|---|" + "---:|" * 5 + "---|---|---|---|", *map(line, rows)])
    page = PAGE.read_text(encoding="utf-8")
    for name, content in (("table", table), ("out of scope", out_of_scope())):
        begin, _, rest = page.partition(_BEGIN.format(name))
        page = f"{begin}{_BEGIN.format(name)}\n{content}\n{rest[rest.index(_END) :]}"
    PAGE.write_text(page, encoding="utf-8")


def documented_out_of_scope() -> str:
    """The list of what is no decoder, as the page has it."""
    return _section(PAGE.read_text(encoding="utf-8"), "out of scope").strip()


def _section(page: str, name: str) -> str:
    found = re.search(f"{re.escape(_BEGIN.format(name))}(.*?){re.escape(_END)}", page, flags=re.DOTALL)
    assert found is not None, f"{PAGE} has no section {name!r}"
    return found[1]


def _measured(kind: str) -> Row:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        row = measure(kind, Path(folder))
    sys.stderr.write(f"{line(row)}\n")
    return row


if __name__ == "__main__":
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        write(list(pool.map(_measured, sorted((*IN_SCOPE, *VARIANTS)))))
