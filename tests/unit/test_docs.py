"""Every link in the documentation leads somewhere, and what it names is there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml

from inference.settings import Settings
from inference.settings.fields import Section

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("deploy/*/README.md")]


def anchors(page: Path) -> set[str]:
    """What a heading is called in links, as GitHub makes it."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_sections_that_there_are(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, section = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{page.name} links to {target}"
        if section:
            assert section in anchors(there), f"{page.name} links to {target}"


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def test_every_file_that_contributing_names_is_there() -> None:
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]*|(?!forecache)[\w.-]+\.(?:md|toml|txt|py))`", CONTRIBUTING)
    made_later = re.compile(r"build/|dist/|\.venv/|\.forecache/|.*(NAME|FORMAT)")
    missing = {name for name in named if not made_later.match(name) and not (ROOT / name).exists()}
    assert len(named) > 30
    assert missing == set()


def test_every_target_of_make_that_a_page_names_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name: page.name for page in PAGES for name in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.M)}
    assert "coverage" in named
    assert {name: page for name, page in named.items() if name not in targets} == {}


def settings_of(section: type[Section]) -> Iterator[tuple[type[Section], str]]:
    """Every setting below a section, with the section that it stands in."""
    for name, field in section.model_fields.items():
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        below = [kind for kind in kinds if issubclass(kind, Section)]
        yield from ((section, name),) if not below else (one for kind in below for one in settings_of(kind))


def test_every_setting_is_in_the_list_of_settings() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    told = set(re.findall(r"[\w]+", " ".join(re.findall(r"`([^`]+)`", page))))
    known = list(settings_of(Settings))
    assert len(known) > 60
    assert [f"{section.__name__}.{name}" for section, name in known if name not in told] == []


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("vendor.github-workflows", ".github/workflows/ci.yml"),
        ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/bug.yml"),
        ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/idea.yml"),
    ],
)
def test_github_can_read_its_files(schema: str, file: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, ROOT / file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_what_is_checked_at_a_commit_is_what_lint_checks() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    commands = re.findall(r"^\t\$\(BIN\)/(.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for hook in hooks:
        program = hook["entry"].removeprefix(".venv/bin/").removesuffix(" --force-exclude")
        assert any(f"{command} ".startswith(f"{program} ") for command in commands), program
