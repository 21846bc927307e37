"""All files or none, and nothing replaced that was not asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.errors import BadInput, Conflict, ForecacheError, SettingsError
from inference.onboarding.files import SettingsTarget, staged

MINE = '[models.delay]\npath = "m"\n'


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_appear_when_they_are_committed_and_leave_nothing_beside_them(tmp_path: Path) -> None:
    with staged({tmp_path / "a": "1", tmp_path / "b": "2"}) as files:
        assert not (tmp_path / "a").exists()
        files.commit()
    assert names(tmp_path) == ["a", "b"]


def test_an_error_before_the_commit_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), staged({tmp_path / "a": "1"}):
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_a_folder_that_is_not_there_leaves_nothing_in_the_other(tmp_path: Path) -> None:
    with (
        pytest.raises(ForecacheError, match="nothing was changed"),
        staged({tmp_path / "a": "1", tmp_path / "no" / "b": "2"}),
    ):
        pytest.fail("not reached")
    assert names(tmp_path) == []


def test_a_name_that_is_not_utf8_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="UTF-8"), staged({tmp_path / "a": "1", tmp_path / "b": "\udc80"}):
        pytest.fail("not reached")
    assert names(tmp_path) == []


@pytest.mark.parametrize("before", [None, "old"])
def test_when_the_second_file_cannot_be_placed_the_first_is_put_back(tmp_path: Path, before: str | None) -> None:
    if before:
        (tmp_path / "a").write_text(before)
    (tmp_path / "b").mkdir()  # no file can take the place of a folder
    with (
        pytest.raises(ForecacheError, match="b cannot be written"),
        staged({tmp_path / "a": "1", tmp_path / "b": "2"}) as files,
    ):
        files.commit()
    assert names(tmp_path) == (["a", "b"] if before else ["b"])
    assert not before or (tmp_path / "a").read_text() == before


@pytest.mark.parametrize(
    ("text", "force", "written"),
    [
        (None, False, "whole"),
        ("", False, None),
        ("", True, "whole"),
        (MINE, True, "whole"),
        ("[api]\nport = 1\n", True, None),
        ('[models.other]\npath = "m"\n', True, None),
    ],
)
def test_a_file_that_holds_anything_else_is_never_replaced(
    tmp_path: Path, text: str | None, force: bool, written: str | None
) -> None:
    file = tmp_path / "forecache.toml"
    if text is not None:
        file.write_text(text)
    target = SettingsTarget.find(file, force=force)
    target.check_model("delay")
    assert target.text_with("delay", "block", "whole") == written


def test_a_model_is_added_to_a_file_only_when_told_so_and_only_once(tmp_path: Path) -> None:
    file = tmp_path / "forecache.toml"
    file.write_text("[api]\nport = 1\n\n\n")
    assert SettingsTarget.find(file, force=False, add=True).text_with("delay", "block", "whole") == (
        "[api]\nport = 1\n\nblock"
    )
    file.write_text(MINE)
    assert SettingsTarget.find(file, force=False, add=True).text_with("delay", "block", "whole") is None


@pytest.mark.parametrize(
    ("more", "force", "words"),
    [("", False, "--force replaces it"), ("[api]\n", False, "another --name"), ("[api]\n", True, "another --name")],
)
def test_a_model_that_is_already_set_up_is_not_set_up_twice(tmp_path: Path, more: str, force: bool, words: str) -> None:
    (tmp_path / "forecache.toml").write_text(MINE + more)
    with pytest.raises(Conflict, match=words):
        SettingsTarget.find(tmp_path / "forecache.toml", force=force).check_model("delay")


def test_a_file_that_is_no_toml_is_not_replaced_even_by_force(tmp_path: Path) -> None:
    (tmp_path / "forecache.toml").write_text("[models.delay]\npath = = 1\n")
    with pytest.raises(SettingsError, match="line 2, column 8"):
        SettingsTarget.find(tmp_path / "forecache.toml", force=True)
