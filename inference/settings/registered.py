"""Reads the paths that name a model of an MLflow registry: `models:/delay@champion`, `models:/delay/3`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inference.errors import shown

SCHEME = "models:"
_FORMS = "models:/NAME@ALIAS, models:/NAME/3 for a fixed version, or models:/NAME for the newest one"
_STAGES = ("none", "staging", "production", "archived")


@dataclass(frozen=True)
class RegisteredModel:
    """A model of an MLflow registry, and which version of it: the `alias`, a fixed one, or (both None) the newest."""

    name: str
    alias: str | None = None
    version: int | None = None

    def __str__(self) -> str:
        if self.alias is not None:
            return f"{SCHEME}/{self.name}@{self.alias}"
        return f"{SCHEME}/{self.name}" + ("" if self.version is None else f"/{self.version}")


def read_registered(path: str | Path) -> RegisteredModel | None:
    """Return the registered model that a path names; None for a path of a folder.

    Raises:
        ValueError: the path begins with `models:` and has another form.
    """
    text = str(path)
    if not text.startswith(SCHEME):
        return None
    name, *after = text.removeprefix(SCHEME).lstrip("/").split("/")
    if len(after) > 1:
        raise ValueError(f"{shown(text)} has a slash too many: write {_FORMS}")
    if not after:
        name, at, alias = name.rpartition("@") if "@" in name else (name, "", "")
        return RegisteredModel(_named(name, text), alias=_named(alias, text) if at else None)
    if after[0].lower() == "latest":
        return RegisteredModel(_named(name, text))
    if after[0].lower() in _STAGES:
        raise ValueError(f"{shown(text)} names a stage, which MLflow has replaced by aliases: write models:/NAME@ALIAS")
    if not (after[0].isascii() and after[0].isdecimal() and 0 < int(after[0]) < 2**63):
        raise ValueError(f"{shown(text)} names no version by a number: write {_FORMS}")
    return RegisteredModel(_named(name, text), version=int(after[0]))


def _named(part: str, text: str) -> str:
    if not part.strip() or ":" in part:
        raise ValueError(f"{shown(text)} is no model of a registry: write {_FORMS}")
    return part
