"""Version numbers that are dates or nanoseconds: exact everywhere, and what is too large is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.dashboard.pages import exact_in_browsers
from inference.errors import ModelError
from inference.models import ModelRegistry, find_versions
from inference.models.versions import MAX_VERSION, unusable_folders
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.schema import DType, TensorSpec
from inference.store import Origin, Table
from inference.store.codec import OverlayHeader, pack_overlay, since_change, unpack_overlay

DATE = 20260131123456
NANOSECONDS = 1769862896123456789
WIDTHS = [1, 2**32 - 1, 2**32, 1481135727591, DATE, 2**53, 2**53 + 1, NANOSECONDS, MAX_VERSION]
FIELDS = (TensorSpec("y", DType.FLOAT32),)
TEXT = (TensorSpec("y", DType.FLOAT32), TensorSpec("label", DType.STRING))


@pytest.fixture
def table(each_redis_client: Client) -> Table:
    return redis_table(each_redis_client)


def redis_table(client: Client) -> Table:
    kind = TableKind.PREDICTIONS
    return Table(client, Keys("t").table(kind, "m"), kind=kind, model="m")


def upsert(table: Table, value: float, *, version: int, as_of: float = 100.0, computed_at: float = 1000.0) -> None:
    table.overlay.upsert(
        ["e1"], FIELDS, {"y": np.array([value], np.float32)}, as_of=np.array([as_of]), computed_at=computed_at,
        model_version=version, origin=Origin.REALTIME, keep_s=60,
    )  # fmt: skip


@pytest.mark.parametrize("version", WIDTHS)
def test_an_answer_of_any_version_is_kept_and_read_back_exactly(table: Table, version: int) -> None:
    table.versions.activate(version)
    assert table.pointer().active_version == version
    upsert(table, 0.5, version=version)
    [entry] = table.read(["e1"])
    assert entry is not None
    assert (entry.model_version, entry.values, entry.as_of) == (version, {"y": 0.5}, 100)


@pytest.mark.parametrize(("one", "other"), [(2**53, 2**53 + 1), (DATE, DATE + 2**32), (5, 5 + 2**32)])
def test_versions_that_a_smaller_number_would_confuse_are_different(table: Table, one: int, other: int) -> None:
    table.versions.activate(one)
    upsert(table, 0.1, version=one, as_of=900.0)
    table.versions.activate(other)
    assert table.pointer().active_version == other
    assert table.read(["e1"]) == [None]  # the old version's answer does not count
    upsert(table, 0.2, version=other, as_of=100.0)  # nor does its being newer keep the new one's out
    [entry] = table.read(["e1"])
    assert entry is not None
    assert entry.values["y"] == pytest.approx(0.2)


def test_an_older_answer_of_the_same_wide_version_never_hides_a_newer_one(table: Table) -> None:
    table.versions.activate(NANOSECONDS)
    upsert(table, 0.5, version=NANOSECONDS, as_of=500.0)
    upsert(table, 0.25, version=NANOSECONDS, as_of=400.0)
    [entry] = table.read(["e1"])
    assert entry is not None
    assert entry.values == {"y": 0.5}


def test_a_wide_answer_after_a_change_of_features_says_so(table: Table) -> None:
    table.versions.activate(NANOSECONDS)
    table.overlay.outdate(["e1"], changed_at=np.array([150.0]), keep_s=60)
    now = table.now() + 10
    upsert(table, 0.5, version=NANOSECONDS, as_of=100.0, computed_at=now)
    manifest = table.generations.begin(FIELDS, rows_expected=1, model_version=NANOSECONDS, contract_hash="", keep_s=60)
    [entry] = table.read(["e1"])
    assert entry is not None
    assert entry.values == {"y": 0.5}
    assert manifest.model_version == NANOSECONDS


@pytest.mark.parametrize(("older", "newer"), [(2**53, 2**53 + 1), (9, 10), (DATE, NANOSECONDS), (99, 2**32)])
def test_the_greater_version_is_told_by_its_digits(table: Table, older: int, newer: int) -> None:
    assert table.versions.activate(newer)
    assert not table.versions.activate(older)
    assert table.pointer().active_version == newer


@pytest.mark.parametrize("fields", [FIELDS, TEXT])
@pytest.mark.parametrize("version", WIDTHS)
def test_an_entry_of_any_version_is_packed_and_unpacked(fields: tuple[TensorSpec, ...], version: int) -> None:
    [packed] = pack_overlay(fields, [b"\x01\x00\x00\x00row"], 12.5, version, Origin.REALTIME)
    for entry, changed in ((packed, False), (since_change(packed), True)):
        header, row = unpack_overlay(entry)
        assert header == OverlayHeader(12.5, version, Origin.REALTIME, header.schema, 1, changed)
        assert row == b"\x01\x00\x00\x00row"


def test_an_entry_that_an_earlier_release_wrote_is_read() -> None:
    written = bytes.fromhex("000000000000294007000000010102030405062a0000000000003f")
    header, row = unpack_overlay(written)
    assert header == OverlayHeader(12.5, 7, Origin.REALTIME, bytes(range(1, 7)), 42, since_change=False)
    assert row == written[19:]
    # and a version of up to 32 bits is written as it was then
    assert len(pack_overlay(FIELDS, [written[19:]], 12.5, 7, Origin.REALTIME)[0]) == len(written)


def test_a_rollback_holds_wide_versions_exactly(each_redis_client: Client) -> None:
    table = redis_table(each_redis_client)
    for version in (2**53, 2**53 + 1):
        manifest = table.generations.begin(FIELDS, rows_expected=1, model_version=version, contract_hash="", keep_s=60)
        table.generations.publish(manifest.number)
        table.versions.activate(version)
    pointer = table.generations.rollback(table.pointer().current or 0)
    assert (pointer.active_version, pointer.held_versions) == (2**53, {2**53 + 1})
    assert not ModelRegistry(each_redis_client, Keys("t")).activate("m", 2**53 + 1)


def model_folder(path: Path, *versions: str) -> Path:
    for version in versions:
        (path / version).mkdir(parents=True)
    return path


def test_a_version_up_to_the_largest_is_found(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, str(DATE), str(NANOSECONDS), str(MAX_VERSION), "00000123")
    assert set(find_versions(folder)) == {123, DATE, NANOSECONDS, MAX_VERSION}


@pytest.mark.parametrize("name", [str(MAX_VERSION + 1), str(2**64), "99999999999999999999999", "9" * 200])
def test_a_version_that_is_too_large_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match=rf"version {name} is too large: .* at most {MAX_VERSION}, so rename"):
        find_versions(model_folder(tmp_path, name))


def test_what_is_too_large_takes_no_good_version_away(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, "7", "99999999999999999999999")
    assert find_versions(folder) == {7: folder / "7"}
    assert "99999999999999999999999 is too large" in unusable_folders(folder)[0]


def test_two_folders_of_one_version_are_refused_by_name(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, "123", "00000123")
    with pytest.raises(ModelError, match="folders 00000123 and 123 are the same version 123"):
        find_versions(folder)
    model_folder(tmp_path, "122")
    assert find_versions(folder) == {122: folder / "122"}


def test_a_browser_is_told_versions_that_it_would_round_as_text() -> None:
    figures = {"active_version": NANOSECONDS, "held_versions": [7, 2**53 + 1], "labels": {"canary": DATE}, "x": 0.5}
    assert exact_in_browsers(figures) == {
        "active_version": str(NANOSECONDS), "held_versions": [7, str(2**53 + 1)], "labels": {"canary": DATE}, "x": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("number", [2**53 - 1, 1 - 2**53, 0, True, 0.5, 2.0**60])
def test_a_browser_is_told_numbers_that_it_reads_exactly_as_they_are(number: float) -> None:
    assert exact_in_browsers([{"x": (number,)}]) == [{"x": [number]}]
    for wide in (2**53, -(2**53)):
        assert exact_in_browsers(wide) == str(wide)


def test_digits_of_other_scripts_are_no_versions(tmp_path: Path) -> None:
    assert set(find_versions(model_folder(tmp_path, "1", "٣", "²"))) == {1}
