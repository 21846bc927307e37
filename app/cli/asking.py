"""Questions on a terminal; without one, the line that says which option is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import typer

from inference.errors import ForecacheError, SettingsError

T = TypeVar("T")


@dataclass(frozen=True)
class Asker:
    """Asks for what was not given. `interactive`: there is a person to ask; `accepts`: guesses are taken unasked."""

    interactive: bool
    accepts: bool

    @classmethod
    def for_terminal(cls, *, accepts: bool) -> Asker:
        """Return one that asks when both ends of this process are a terminal, unless guesses are accepted anyway."""
        return cls(not accepts and sys.stdin.isatty() and sys.stdout.isatty(), accepts)

    def need(
        self, option: str, question: str, given: str | None, check: Callable[[str], T], guess: str | None = None
    ) -> T:
        """Return the checked value: the given one, the answer to the question, or an accepted guess.

        A wrong answer is asked for again with the reason; a wrong option is an error.

        Raises:
            SettingsError: there is neither value nor anybody to ask.
            ForecacheError: what `check` raises for the given value or the accepted guess.
        """
        if given is not None:
            return check(given)
        if self.interactive:
            return self.ask(question, check, guess)
        if self.accepts and guess is not None:
            return check(guess)
        suggested = f" (the table suggests {guess!r})" if guess is not None else ""
        raise SettingsError(f"{option} is missing: {question}{suggested}", field=option)

    def ask(self, question: str, check: Callable[[str], T], guess: str | None = None) -> T:
        """Ask until the answer is good. Ctrl-C and Ctrl-D end the command."""

        def checked(answer: str) -> T:
            try:
                return check(answer.strip())
            except ForecacheError as error:
                raise typer.BadParameter(error.message) from error

        value: T = typer.prompt(question, default=guess, value_proc=checked)
        return value
