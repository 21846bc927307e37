"""Reads a dated table of prices: the shipped one, or the user's in the same form."""

from __future__ import annotations

import difflib
import tomllib
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from inference.economics.inputs import Basis, Figure
from inference.errors import SettingsError
from inference.field_errors import describe_error_in_file
from inference.settings.fields import Section
from inference.small_files import read_small_text

Kind = Literal["instances", "memory", "storage"]


class Price(Section):
    """One price and its source."""

    price: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    source: Annotated[str, Field(min_length=1)]


class Defaults(Section):
    """The entries that are used by default."""

    batch_instance: str
    realtime_instance: str
    memory: str
    storage: str


class PriceTable(Section):
    """The prices of one day in one currency: `instances` per hour, `memory` and `storage` per GB and month."""

    as_of: date
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    defaults: Defaults
    instances: dict[str, Price]
    memory: dict[str, Price]
    storage: dict[str, Price]

    def find(self, kind: Kind, name: str) -> Figure:
        """Return the price of an entry.

        Raises:
            SettingsError: there is no such entry; names the nearest one.
        """
        entries: dict[str, Price] = getattr(self, kind)
        if name not in entries:
            folded = {each.lower(): each for each in entries}
            near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.0)
            hint = f"the nearest is {folded[near[0]]!r}, " if near else ""
            raise SettingsError(
                f"no {kind} named {name!r} in the price table: {hint}known are {', '.join(sorted(entries))}",
                field=kind,
            )
        entry = entries[name]
        return Figure(entry.price, Basis.PRICES, f"{name}, {self.as_of}: {entry.source}")

    def figures(self, *, instance: str | None = None, batch_instance: str | None = None) -> dict[str, Figure]:
        """Return the four prices of a cost. `instance` is also for runs, unless `batch_instance` is given.

        Raises:
            SettingsError: there is no such instance.
        """
        return {
            "batch_instance_price": self.find("instances", batch_instance or instance or self.defaults.batch_instance),
            "instance_price": self.find("instances", instance or self.defaults.realtime_instance),
            "redis_price": self.find("memory", self.defaults.memory),
            "storage_price": self.find("storage", self.defaults.storage),
        }


def read_prices(file: Path | None = None) -> PriceTable:
    """Return the table of a TOML file, or the shipped one.

    Raises:
        SettingsError: the file cannot be read, or an entry is wrong; names the entry.
    """
    name, text = _shipped() if file is None else _read(file)
    try:
        table = PriceTable.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingsError(f"{name} is not TOML: {error}", field="prices") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise SettingsError(f"{name}: {where}: {describe_error_in_file(first)}", field="prices") from error
    table.figures()  # raises if a default names a missing entry
    return table


def _shipped() -> tuple[str, str]:
    """Return the name and the text of the file."""
    return "prices.toml", files("inference.economics").joinpath("prices.toml").read_text(encoding="utf-8")


def _read(file: Path) -> tuple[str, str]:
    try:
        return str(file), read_small_text(file)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--prices: {file} cannot be read: {error}", field="prices") from error
