"""docs/cost.md, taken at its word."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest

from app.cli.cost import cost
from inference.economics.rules import FACTS, RULES
from tests.support.command import forecache_here
from tests.support.redis_server import RedisServer
from tests.support.stack import run_cli

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "cost.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_does_what_it_says(command: str, tmp_path: Path, redis_server: RedisServer) -> None:
    words = shlex.split(command)
    assert words[0] == "forecache"
    if "--picture" in words:
        pytest.importorskip("matplotlib")
    reads_deployment = words[1] in ("advise", "curves")
    if reads_deployment:
        redis = f'[redis]\nurl = "{redis_server.url()}"\ncache_url = "{redis_server.url(1)}"\n'
        (tmp_path / "forecache.toml").write_text(f'{redis}[models.delay]\npath = "m"\nfeatures = "t.parquet"\n')
    run = run_cli if reads_deployment else forecache_here
    done = run(tmp_path, *words[1:])
    assert done.returncode == 0, done.stderr
    if "article" in words:
        for figure in ("0.108333", "0.084155", "0.000822"):
            assert figure in done.stdout
            assert figure in PAGE
    if words[1] == "curves":
        assert done.stdout.startswith("delay")
    if "--picture" in words:
        assert (tmp_path / "cost.png").stat().st_size > 10_000
    if "--write" in words:
        assert 'ttl = "6h"' in (tmp_path / "forecache.toml").read_text()


def test_the_page_has_commands_and_every_rule_and_input() -> None:
    assert len(COMMANDS) == 7
    for rule in RULES:
        assert f"| {rule.name} | {rule.approach.value.replace('realtime', 'real time')} |" in PAGE
    options = set(re.findall(r"`(--[a-z-]+)", PAGE)) | set(re.findall(r" (--[a-z-]+)", PAGE))
    for name in inspect.signature(cost).parameters.keys() - {"model", "as_json"}:
        assert f"--{name.replace('_', '-')}" in options, name
    for fact in FACTS.keys() - {"no_table"}:
        assert f"--{fact.replace('_', '-')}" in options, fact
