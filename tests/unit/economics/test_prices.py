"""The table of prices."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.economics.inputs import Basis
from inference.economics.prices import read_prices
from inference.errors import SettingsError

OWN = """
as_of = 2026-01-02
currency = "EUR"
[defaults]
batch_instance = "a"
realtime_instance = "b"
memory = "m"
storage = "s"
[instances.a]
price = 1.5
source = "our contract"
[instances.b]
price = 2.5
source = "our contract"
[memory.m]
price = 9
source = "our contract"
[storage.s]
price = 0.02
source = "our contract"
"""


def own(folder: Path, text: str = OWN) -> Path:
    file = folder / "prices.toml"
    file.write_text(text)
    return file


def test_the_table_that_ships_is_dated_and_says_where_each_price_was_read() -> None:
    table = read_prices()
    assert table.as_of.year >= 2026
    assert table.currency == "USD"
    for entries in (table.instances, table.memory, table.storage):
        assert all(entry.source for entry in entries.values())
    example = table.figures()
    assert (example["batch_instance_price"].value, example["instance_price"].value) == (3.0, 5.0)
    assert example["instance_price"].origin is Basis.PRICES


def test_ones_own_table_takes_its_place(tmp_path: Path) -> None:
    table = read_prices(own(tmp_path))
    assert (table.currency, table.figures()["redis_price"].value) == ("EUR", 9)
    assert table.figures(instance="b")["batch_instance_price"].value == 2.5
    assert table.figures(instance="b", batch_instance="a")["batch_instance_price"].value == 1.5


def test_an_unknown_instance_type_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"no instances named 'G5\.xlage'.*nearest is 'g5\.xlarge'"):
        read_prices().figures(instance="G5.xlage")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nonsense", "is not TOML"),
        (OWN.replace("price = 1.5", "price = 0"), r"instances\.a\.price"),
        (OWN.replace("price = 1.5", "price = nan"), r"instances\.a\.price"),
        (OWN.replace("price = 1.5", "price = inf"), r"instances\.a\.price"),
        (OWN.replace("price = 1.5\n", ""), r"instances\.a\.price: is missing"),
        (OWN.replace("as_of = 2026-01-02", ""), "as_of"),
        (OWN.replace('batch_instance = "a"', 'batch_instance = "c"'), "no instances named 'c'"),
    ],
)
def test_a_table_that_is_wrong_says_where(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        read_prices(own(tmp_path, text))


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--prices: .*cannot be read"):
        read_prices(tmp_path / "none.toml")
