"""How long work shows how far it is: a bar on a terminal, lines elsewhere, nothing for a program."""

import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

#: Seconds between two lines of progress, at least.
LINE_SECONDS = 5.0


class Progress:
    """How far a piece of work is; this one shows nothing. Used as a context manager, by one thread."""

    def __init__(self, label: str, total: int | None = None, unit: str = "documents") -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self.done = 0

    def advance(self, count: int = 1) -> None:
        """Say that this many more are done."""
        self.update(self.done + count)

    def update(self, done: int, total: int | None = None) -> None:
        """Say how many are done, and how many there are if that changed."""
        self.done = done
        self.total = self.total if total is None else total
        self._show()

    def _show(self) -> None:
        """Show the new state."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave what was shown last."""


class Lines(Progress):
    """A line every few seconds, and a last one when the work ends well."""

    def __init__(
        self,
        label: str,
        total: int | None = None,
        unit: str = "documents",
        *,
        write: Callable[[str], None] = lambda line: click.echo(line, err=True),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(label, total, unit)
        self._write = write
        self._clock = clock
        self._began = self._shown = clock()

    def _show(self) -> None:
        now = self._clock()
        if now - self._shown >= LINE_SECONDS:
            self._shown = now
            self._write(self._line(now))

    def _line(self, now: float) -> str:
        of = f" of {self.total:,}" if self.total is not None else ""
        rate = self.done / max(now - self._began, 1e-3)
        return f"{self.label}: {self.done:,}{of} {self.unit}, {rate:,.0f}/s{self._left(rate)}"

    def _left(self, rate: float) -> str:
        if self.total is None or self.done >= self.total or not rate:
            return ""
        return f", {timedelta(seconds=round((self.total - self.done) / rate))} left"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the last line, unless the work failed."""
        if kind is None:
            self._write(self._line(self._clock()))


class Bar(Progress):
    """A bar with count, rate and time left."""

    def __init__(
        self, label: str, total: int | None = None, unit: str = "documents", *, console: Console
    ) -> None:
        super().__init__(label, total, unit)
        text = TextColumn("{task.description}", markup=False)
        count, left = MofNCompleteColumn(), TimeRemainingColumn()
        self._bar = RichProgress(text, BarColumn(), count, _Rate(unit), left, console=console)
        self._task = self._bar.add_task(label, total=total)

    def _show(self) -> None:
        self._bar.update(self._task, completed=self.done, total=self.total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it is and give the line back to the terminal."""
        self._bar.stop()


class _Rate(ProgressColumn):
    """How many are done per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """Give the rate, or nothing while it is not known."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {self._unit}/s" if speed else "")
