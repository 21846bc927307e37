"""Puts advice into the text of a settings file. Keeps comments, order and spelling of everything else."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Sequence
from typing import Any

import tomlkit
from tomlkit.items import Table

from inference.economics.advice import Advice
from inference.economics.rules import Approach
from inference.errors import SettingsError


def with_advice(text: str, advices: Sequence[Advice]) -> str:
    """Return the file's text with the advised schedule and ttl in each `[models.M.batch]`.

    For real time, removes the schedule, so that no runs start. Stored predictions stay.

    Raises:
        SettingsError: the text is not TOML, lacks the section of a model, or cannot be changed safely.
    """
    try:
        wanted = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"forecache.toml is not TOML: {error}") from error
    for advice in advices:
        _rewrite(wanted, advice, dict)
    # under a dotted key, tomlkit writes a new section under a wrong name; an inline table works
    for new_section in (tomlkit.table, tomlkit.inline_table):
        after = _rewritten(text, advices, new_section)
        if after is not None and tomllib.loads(after) == wanted:
            return after
    raise SettingsError("forecache.toml is spelled so that no program can change it: set schedule and ttl there")


def _rewritten(text: str, advices: Sequence[Advice], new_section: Callable[[], Any]) -> str | None:
    """Return the changed text; None if this kind of section is not possible here."""
    document = tomlkit.parse(text)
    try:
        for advice in advices:
            _rewrite(document, advice, new_section)
    except ValueError:  # an inline table holds only inline tables
        return None
    after = tomlkit.dumps(document)
    return after if text.endswith("\n\n") else after.rstrip("\n") + "\n"


def diff(before: str, after: str, name: str) -> str:
    """Return the changes as a unified diff; empty if there are none."""
    lines = difflib.unified_diff(before.splitlines(keepends=True), after.splitlines(keepends=True), name, name)
    return "".join(lines)


def _rewrite(document: Any, advice: Advice, new_section: Callable[[], Any]) -> None:
    """Change parsed settings in place: plain values, or values of tomlkit."""
    section = document.get("models", {}).get(advice.model)
    if section is None:
        raise SettingsError(
            f"forecache.toml has no section [models.{advice.model}]: it is set elsewhere, change it there",
            field="models",
        )
    if advice.approach is Approach.REALTIME:
        section.get("batch", {}).pop("schedule", None)
        return
    is_new = "batch" not in section
    if is_new:
        section["batch"] = new_section()
    for name in ("schedule", "ttl"):
        value = advice.numbers[name].value
        if section["batch"].get(name) != value:
            section["batch"][name] = value
    if is_new and isinstance(section["batch"], Table):
        section["batch"].add(tomlkit.nl())
