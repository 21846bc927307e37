"""Path patterns that a client names: matched in a time that grows with the name, and refused where they are none."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from inference.batch.paths import locate_source
from inference.errors import BadInput
from inference.settings import ModelSettings, Settings
from inference.sources import list_files
from inference.sources.files import LONGEST_PATTERN, PathPattern
from inference.storage import open_location

NAME = "data/" + "a" * 250
#: each took longer than anybody waits, by an expression that goes back over the name for every star
WORST = [
    "data/" + "**" * 100 + "z",
    "data/" + "*" * 1000 + "z",
    "data/" + "*a" * 500 + "b",
    "data/" + "**/*" * 250 + "z",
    "data/" + "**a" * 300 + "b",
    "data/" + "[a-z]*" * 150 + "9",
    "data/" + "?*" * 500 + "9",
    "data/" + "**/" * 340 + "z",
]


@pytest.mark.parametrize("pattern", WORST)
def test_stars_without_end_are_matched_at_once(pattern: str) -> None:
    found = PathPattern(pattern)
    assert not found.matches(NAME)
    assert not found.matches("data/" + "a/" * 120 + "a", below=True)
    # each character is looked at once, whatever the pattern: there is a step for each, or for less
    assert len(found._steps) <= len(NAME) + 241


def reference(pattern: list[str], name: str) -> bool:
    """Whether the pieces of a pattern match a name, as the rules say it and as slowly as that is."""
    if not pattern:
        return not name
    first, rest = pattern[0], pattern[1:]
    if first == "**/":
        return any(reference(rest, name[at:]) for at in range(len(name) + 1) if at == 0 or name[at - 1] == "/")
    if first in ("*", "**"):
        stop = len(name) if first == "**" else (*name, "/").index("/")
        return any(reference(rest, name[at:]) for at in range(stop + 1))
    if not name:
        return False
    fits = {"?": name[0] != "/", "[ab]": name[0] in "ab", "[!a]": name[0] not in "a/"}.get(first, name[0] == first)
    return fits and reference(rest, name[1:])


def test_a_pattern_means_what_the_rules_say() -> None:
    names = ["".join(one) for size in range(5) for one in itertools.product("ab/", repeat=size)]
    for pieces in itertools.product(["a", "/", "?", "*", "**", "**/", "[ab]", "[!a]"], repeat=3):
        if any(first[-1] == "*" and second[0] in "*/" for first, second in itertools.pairwise(pieces)):
            continue  # read as other pieces
        pattern = PathPattern("".join(pieces))
        wrong = [name for name in names if pattern.matches(name) != reference(list(pieces), name)]
        assert not wrong, ("".join(pieces), wrong[:3])


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("d/***/x", "d/a/b/x", True),
        ("d/****", "d/a/b", True),
        ("[]a]", "]", True),
        ("[a-c^]", "^", True),
        ("[!a-c]", "b", False),
        ("[+-9]", "/", False),
        ("[a", "[a", True),
        ("a.b", "axb", False),
        ("a\nb*", "a\nbc", True),
    ],
)
def test_odd_pieces(pattern: str, name: str, matches: bool) -> None:
    assert PathPattern(pattern).matches(name) is matches


def test_a_folder_that_a_pattern_names_is_taken_with_all_below_it(tmp_path: Path) -> None:
    for name in ("date=1/a/x.parquet", "date=1/note.txt", "date=2.parquet", "other/x.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = list_files(open_location(f"{tmp_path}/date=*"))
    assert [Path(one).relative_to(tmp_path).as_posix() for one in found] == ["date=1/a/x.parquet", "date=2.parquet"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("data/\0x", "holds a NUL"),
        ("data/\ud800", "is no valid Unicode"),
        ("data/[z-a]", "has a range that goes backwards"),
        ("data/" + "*" * LONGEST_PATTERN, "is too long: at most 1024"),
        ("data/" + "x" * 5000, "is too long: at most 4096"),
        ("~nobody-of-that-name/x", "home folder"),
        ("s3://" + "x!" * 2000 + "/y", "is too long" if len("s3://" + "x!" * 2000 + "/y") > 4096 else "not a name of"),
    ],
)
def test_a_source_that_no_file_system_takes_is_the_clients_mistake(tmp_path: Path, source: str, words: str) -> None:
    with pytest.raises(BadInput, match=words) as refused:
        locate(tmp_path, source)
    assert refused.value.field == "source"
    assert len(refused.value.message) < 250


@pytest.mark.parametrize("source", ["data/" + "x" * 300, "data/" + "x" * 300 + "*", "data/[a", "data/**/" + "*" * 900])
def test_a_source_that_is_nowhere_is_told_by_the_run(tmp_path: Path, source: str) -> None:
    assert locate(tmp_path, source) == str(tmp_path / source)


def locate(folder: Path, source: str) -> str:
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / ("a" * 200 + ".parquet")).touch()
    model = ModelSettings(path=Path("m"), features="data")
    settings = Settings.model_validate({"models": {"m": {"path": "m", "features": "data"}}})
    settings._root = folder
    return locate_source(settings, "m", model, source, confined=True)
