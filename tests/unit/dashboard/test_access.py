"""The dashboard's name and password."""

from __future__ import annotations

import json
import stat
from base64 import b64encode
from pathlib import Path

import pytest

from app.dashboard.access import Credentials, find_credentials
from inference.errors import SettingsError
from inference.settings import Settings, load_settings


def settings_in(folder: Path, dashboard: str = "") -> Settings:
    file = folder / "forecache.toml"
    file.write_text(f"[dashboard]\n{dashboard}\n")
    return load_settings(file)


def test_a_password_is_generated_once_and_kept_for_the_owner_alone(tmp_path):
    first = find_credentials(settings_in(tmp_path))
    assert first.file
    assert stat.S_IMODE(first.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(first.file.parent.stat().st_mode) == 0o700
    assert find_credentials(settings_in(tmp_path)) == first
    assert len(first.password) >= 24
    assert list(first.file.parent.iterdir()) == [first.file]


def test_two_deployments_get_different_passwords(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    passwords = {find_credentials(settings_in(tmp_path / name)).password for name in "ab"}
    assert len(passwords) == 2


def test_a_file_left_readable_to_others_is_closed_again(tmp_path):
    file = find_credentials(settings_in(tmp_path)).file
    assert file
    file.chmod(0o644)
    find_credentials(settings_in(tmp_path))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_password_of_the_settings_is_used_and_writes_no_file(tmp_path):
    found = find_credentials(settings_in(tmp_path, 'username = "ops"\npassword = "open:sesame"'))
    assert (found.basic_auth, found.file) == ("ops:open:sesame", None)
    assert not (tmp_path / ".forecache").exists()


def test_the_password_is_not_in_the_printed_form(tmp_path):
    assert "sesame" not in repr(find_credentials(settings_in(tmp_path, 'password = "sesame"')))


@pytest.mark.parametrize("line", ['password = ""', 'password = "pässword"', 'username = "a:b"', 'username = ""'])
def test_credentials_that_basic_auth_cannot_carry_are_refused_by_name(tmp_path, line):
    with pytest.raises(SettingsError, match=line.split()[0]):
        find_credentials(settings_in(tmp_path, line))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"password": 5}', '{"password": ""}'])
def test_a_damaged_file_is_named_with_the_fix(tmp_path, content):
    file = find_credentials(settings_in(tmp_path)).file
    assert file
    file.write_text(content)
    with pytest.raises(SettingsError, match=r"dashboard"):
        find_credentials(settings_in(tmp_path))


def test_the_file_is_json_that_a_person_can_read(tmp_path):
    found = find_credentials(settings_in(tmp_path))
    assert found.file
    assert json.loads(found.file.read_text()) == {"username": "forecache", "password": found.password}


def shown(text: str, scheme: str = "Basic ") -> str:
    return scheme + b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("authorization", "is_right"),
    [
        (shown("ops:open:sesame"), True),
        (shown("ops:open:sesame", "bAsIc   ") + " ", True),
        (shown("ops:open:sesame", "Bearer "), False),
        (shown("ops:open:sesame", ""), False),
        (shown("ops:open"), False),
        (shown("ops:open:sesam"), False),
        (shown("ops:open:sesame "), False),
        (shown("Ops:open:sesame"), False),
        (shown(":"), False),
        ("Basic ops:open:sesame", False),
        ("Basic", False),
        ("", False),
        ("Basic \xff\xfe", False),
    ],
)
def test_only_the_whole_name_and_password_get_in_and_only_as_basic_auth(authorization, is_right):
    assert Credentials("ops", "open:sesame").are_in(authorization) is is_right
