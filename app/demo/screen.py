"""Prints the demo's numbered steps, with a live bar on a terminal and plain lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

#: shows the progress: (done, total)
Advance = Callable[[int, int], None]

_TITLE_WIDTH = 14


class Screen:
    """Prints the steps. Colours and bars appear only on a terminal; `NO_COLOR` removes the colours."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._step = 0

    @property
    def is_live(self) -> bool:
        """Whether the output is a terminal."""
        return self._console.is_terminal

    def step(self, title: str, text: str) -> None:
        """Print a finished step under the next number."""
        self._step += 1
        head = Text(f"{self._step:>2} {title:<{_TITLE_WIDTH}} ", style="bold cyan")
        self._lines(head, text)

    def more(self, text: str) -> None:
        """Print another line of the last step."""
        self._lines(Text(" " * (_TITLE_WIDTH + 4)), text)

    def say(self, text: str = "", style: str = "") -> None:
        """Print text as it is."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    @contextmanager
    def waiting(self, text: str) -> Iterator[Advance]:
        """Show `text` with a spinner while the block runs, and a bar once the block calls the yielded function.

        Both disappear after the block. A pipe shows neither.
        """
        if not self.is_live:
            yield lambda _done, _total: None
            return
        columns = (
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=28), _Rate(), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self._console, transient=True, refresh_per_second=10) as progress:
            task = progress.add_task(text, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    def _lines(self, head: Text, text: str) -> None:
        first, *others = text.split("\n")
        self._console.print(head + Text(first), soft_wrap=True)
        for line in others:
            self._console.print(" " * len(head) + line, soft_wrap=True, markup=False)


class _Rate(ProgressColumn):
    """The column of rows done, all rows, and rows per second."""

    def render(self, task: Task) -> Text:
        """Return the column's text; before the first figures, the seconds since the start."""
        if not task.total:
            return Text(f"{task.elapsed or 0:.0f} s")
        rate = task.finished_speed or task.speed
        return Text(f"{task.completed:,.0f}/{task.total:,.0f} rows{f' · {rate:,.0f}/s' if rate else ''}")


class Stopwatch:
    """Measures the time since its creation."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    @property
    def s(self) -> float:
        """Seconds since the creation."""
        return time.perf_counter() - self._started

    @property
    def ms(self) -> float:
        """Milliseconds since the creation."""
        return self.s * 1000
