"""Files that have no end, are far too large, or give nothing: wherever a command or a setting names a small one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.dashboard.access import find_credentials
from inference.batch import selection
from inference.economics.prices import read_prices
from inference.errors import ForecacheError
from inference.features.contract import read_contract
from inference.models.remote_file import read_remote
from inference.schema import Signature
from inference.settings import Settings, load_settings
from inference.small_files import read_small_text
from tests.support.stack import run_cli

ZEROS = Path("/dev/zero")


def read_secret(file: Path) -> Settings:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORECACHE_API__CLIENT_KEY_FILE", str(file))
        return load_settings()


def read_password(file: Path) -> Any:
    place = file.parent / ".forecache" / "dashboard.json"
    place.parent.mkdir()
    place.symlink_to(file)
    return find_credentials(Settings.of_folder(file.parent))


def read_features(file: Path) -> Any:
    (file.parent / "features.json").symlink_to(file)
    return read_contract(file.parent, file.parent, Signature((), ()))


READERS: dict[str, Callable[[Path], Any]] = {
    "forecache.toml": load_settings,
    "a secret": read_secret,
    "the dashboard's password": read_password,
    "features.json": read_features,
    "remote.toml": read_remote,
    "prices": read_prices,
    "entities": lambda file: selection.read_entities(str(file), "entity_id"),
}


@pytest.fixture(autouse=True)
def fewer_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "MOST_ID_BYTES", 8 << 20)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_no_person_wrote_is_refused_in_one_line_that_says_so(tmp_path: Path, name: str) -> None:
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate(9 << 20)
    with pytest.raises(ForecacheError, match="it is larger than 8 MiB") as refused:
        READERS[name](file)
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("name", sorted(READERS.keys() - {"a secret", "features.json"}))
def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path: Path, name: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ForecacheError):
        READERS[name](pipe)


def test_a_pipe_with_a_writer_is_read_to_its_end(tmp_path: Path) -> None:
    read, write = os.pipe()
    halves = threading.Thread(target=lambda: [os.write(write, b"a\nb"), os.write(write, b"c\n"), os.close(write)])
    halves.start()
    assert selection.read_entities(f"/dev/fd/{read}", "entity_id") == ["a", "bc"]
    halves.join()
    os.close(read)


def test_as_large_as_they_may_be_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes(b"x" * (8 << 20))
    assert len(read_small_text(tmp_path / "ids")) == 8 << 20


@pytest.mark.integration
def test_a_command_that_is_given_what_has_no_end_says_so(tmp_path: Path) -> None:
    done = run_cli(tmp_path, "cost", "--prices", str(ZEROS))
    assert done.returncode == 2
    assert done.stderr == "forecache: --prices: /dev/zero cannot be read: it is larger than 8 MiB\n"
