"""How the demo tells its story: numbered steps, and a live bar for what takes time; plain lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

#: tells how far it is: (done, total)
Advance = Callable[[int, int], None]

_TITLE_WIDTH = 14


class Screen:
    """Prints the steps. Colours and bars only on a terminal; `NO_COLOR` is obeyed."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._step = 0

    @property
    def is_live(self) -> bool:
        """Whether somebody watches on a terminal."""
        return self._console.is_terminal

    def step(self, title: str, text: str) -> None:
        """Tell what has happened; the title is the step's name."""
        self._step += 1
        head = Text(f"{self._step:>2} {title:<{_TITLE_WIDTH}} ", style="bold cyan")
        self._lines(head, text)

    def more(self, text: str) -> None:
        """Tell more of the step before: a reason, or what follows from it."""
        self._lines(Text(" " * (_TITLE_WIDTH + 4)), text)

    def say(self, text: str = "", style: str = "") -> None:
        """Print lines as they are."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    @contextmanager
    def waiting(self, text: str) -> Iterator[Advance]:
        """Show what is awaited while the block runs: a spinner, and from the first figures on a bar.

        Nothing in a pipe. It leaves no trace: what came of it is told by a step.
        """
        if not self.is_live:
            yield _unseen
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


def _unseen(_done: int, _total: int) -> None:
    """Show no progress: nobody watches."""


class _Rate(ProgressColumn):
    """Rows done, of how many, and how many a second."""

    def render(self, task: Task) -> Text:
        """Return the text for the present state; before the first figures, the seconds that passed."""
        if not task.total:
            return Text(f"{task.elapsed or 0:.0f} s")
        rate = task.finished_speed or task.speed
        return Text(f"{task.completed:,.0f}/{task.total:,.0f} rows{f' · {rate:,.0f}/s' if rate else ''}")


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    @property
    def s(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._started

    @property
    def ms(self) -> float:
        """Milliseconds so far."""
        return self.s * 1000
