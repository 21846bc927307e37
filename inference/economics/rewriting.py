"""The settings file with advice in it: comments, order and spelling of all else stay as they are."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Table

from inference.economics.advice import Advice
from inference.economics.rules import Approach
from inference.errors import SettingsError


def with_advice(text: str, advices: Sequence[Advice]) -> str:
    """Return the file's text with each model's `[models.M.batch]` schedule and ttl as advised.

    Real time takes the schedule out, so that no runs start; what is stored stays.

    Raises:
        SettingsError: the text is no TOML, or has no section of a model.
    """
    try:
        document = tomlkit.parse(text)
    except TOMLKitError as error:
        raise SettingsError(f"forecache.toml is no TOML: {error}") from error
    for advice in advices:
        _rewrite(document, advice)
    return tomlkit.dumps(document)


def diff(before: str, after: str, name: str) -> str:
    """Return what changed as a unified diff; empty when nothing did."""
    lines = difflib.unified_diff(before.splitlines(keepends=True), after.splitlines(keepends=True), name, name)
    return "".join(lines)


def _rewrite(document: tomlkit.TOMLDocument, advice: Advice) -> None:
    section = document.get("models", {}).get(advice.model)
    if section is None:
        raise SettingsError(
            f"forecache.toml has no section [models.{advice.model}]: it is set elsewhere, change it there",
            field="models",
        )
    if advice.approach is Approach.REALTIME:
        section.get("batch", {}).pop("schedule", None)
        return
    if "batch" not in section:
        section["batch"] = tomlkit.table() if isinstance(section, Table) else tomlkit.inline_table()
    for name in ("schedule", "ttl"):
        value = advice.numbers[name].value
        if section["batch"].get(name) != value:
            section["batch"][name] = value
