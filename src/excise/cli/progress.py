"""Progress on stderr: a live line on a terminal, a plain line every few seconds in a log file.

Work may be nested (a search of trials, each of which generates): the outer work is what the plain lines tell of.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Protocol, cast, runtime_checkable

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

SHOW_AFTER = 2.0
"""Seconds of work before anything is shown of it."""

LINE_EVERY = 5.0
"""Seconds between the plain lines."""


@runtime_checkable
class Stream(Protocol):
    """What is needed of stderr and stdout."""

    def write(self, text: str, /) -> int:
        """Write text."""

    def flush(self) -> None:
        """Let it be seen."""

    def isatty(self) -> bool:
        """Whether a person looks at it."""


@dataclass
class Work:
    """One labelled piece of work under way."""

    label: str
    unit: str
    began: float
    done: int = 0
    total: int = 0

    def describe(self, now: float) -> str:
        """`search: 12/60 trials, 20 %, 0.5 trials/s, 1 min 36 s left`."""
        elapsed = now - self.began
        parts = [f"{self.label}: {_amount(self.done, self.total, self.unit)}"]
        if self.total > 0:
            parts.append(f"{100 * self.done / self.total:.0f} %")
        if self.done > 0 and elapsed > 0:
            parts.append(_rate(self.done / elapsed, self.unit))
            if self.total > self.done:
                parts.append(f"{duration(elapsed / self.done * (self.total - self.done))} left")
        return ", ".join(parts)

    def summary(self, now: float) -> str:
        """`search: 60 trials in 2 min 3 s`."""
        return f"{self.label}: {_amount(self.done, None, self.unit)} in {duration(now - self.began)}"


@runtime_checkable
class Renderer(Protocol):
    """Where progress is shown."""

    def update(self, works: tuple[Work, ...], now: float) -> None:
        """What is under way, outer work first."""

    def finished(self, work: Work, now: float) -> None:
        """A piece of work that took a while is done."""

    def tell(self, sentence: str) -> None:
        """Show a sentence that stays."""

    def close(self) -> None:
        """Nothing more comes."""


class ProgressLine:
    """A `Progress` that shows itself on stderr, as a context manager."""

    def __init__(self, stream: Stream | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        stream = stream or sys.stderr
        self._clock = clock
        self._works: dict[str, Work] = {}
        self._renderer: Renderer = LiveLine(stream) if stream.isatty() else PlainLines(stream)

    def __call__(self, label: str, done: int, total: int, unit: str = "") -> None:
        """Note that `done` of `total` are finished, and show it where enough time has passed."""
        now = self._clock()
        work = self._works.get(label)
        if work is None or done < work.done:
            self._works.pop(label, None)
            # Work that begins ends what was under way inside its siblings: only what is outside stays.
            work = self._works[label] = Work(label, unit, began=now)
        work.done, work.total = done, total
        if 0 < total <= done:
            self._finish(label, now)
        shown = tuple(work for work in self._works.values() if now - work.began >= SHOW_AFTER)
        self._renderer.update(shown, now)

    def tell(self, sentence: str) -> None:
        """Show a sentence at once; it stays."""
        self._renderer.tell(sentence)

    def _finish(self, label: str, now: float) -> None:
        names = list(self._works)
        position = names.index(label)
        for inner in names[position + 1 :]:
            del self._works[inner]
        work = self._works.pop(label)
        if position == 0 and now - work.began >= SHOW_AFTER:
            self._renderer.finished(work, now)

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._renderer.close()


class PlainLines:
    """For a log file: a line every few seconds, and one when a piece of work is done."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._last: float | None = None

    def update(self, works: tuple[Work, ...], now: float) -> None:
        """Write a line about the outermost work, unless one was written just before."""
        if works and (self._last is None or now - self._last >= LINE_EVERY):
            self._write(works[0].describe(now), now)

    def finished(self, work: Work, now: float) -> None:
        """Write how long it took."""
        self._write(work.summary(now), now)

    def tell(self, sentence: str) -> None:
        """Write it."""
        self._stream.write(f"{sentence}\n")
        self._stream.flush()

    def close(self) -> None:
        """Nothing to clean up."""

    def _write(self, line: str, now: float) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()
        self._last = now


class LiveLine:
    """For a terminal: one live line per nested work, replaced in place; finished work leaves a line."""

    def __init__(self, stream: Stream) -> None:
        self._console = Console(file=cast("IO[str]", stream))
        self._live: Live | None = None

    def update(self, works: tuple[Work, ...], now: float) -> None:
        """Show what is under way."""
        if self._live is None and not works:
            return
        table = Table.grid()
        for work in works:
            table.add_row(Spinner("dots", text=f" {work.describe(now)}"))
        if self._live is None:
            self._live = Live(table, console=self._console, refresh_per_second=8, transient=True, redirect_stdout=False)
            self._live.start(refresh=True)
        else:
            self._live.update(table)

    def finished(self, work: Work, now: float) -> None:
        """Leave a line that says how long it took."""
        self._console.print(work.summary(now), style="dim", highlight=False)

    def tell(self, sentence: str) -> None:
        """Leave it above the live line."""
        self._console.print(sentence, highlight=False, markup=False)

    def close(self) -> None:
        """Take the live line away."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def duration(seconds: float | int) -> str:
    """Seconds as people say them: `8 s`, `2 min 3 s`, `1 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float | int) -> str:
    """Bytes as people say them: `3.1 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _amount(done: int, total: int | None, unit: str) -> str:
    if unit == "B":
        return size(done) if total is None else f"{size(done)} of {size(total)}"
    return f"{done if total is None else f'{done}/{total}'} {unit}".rstrip()


def _rate(rate: float, unit: str) -> str:
    if unit == "B":
        return f"{size(rate)}/s"
    name = unit or "steps"
    return f"{rate:.3g} {name}/s" if rate >= 0.1 else f"{duration(1 / rate)} each"
