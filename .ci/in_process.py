"""A pytest plugin that leaves out every test which starts a process of ours, for `make mutants`.

A fault is switched on in one process; another one would run without it, and takes seconds to start.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any

import pytest

#: names that start a process: our deployments, our commands, a model's trial, an export by TensorFlow
_STARTERS = {"Stack", "Rig", "subprocess", "multiprocessing", "create_subprocess_exec", "inspect_in_subprocess",
             "inspect_version_in_subprocess", "runpy", "executable"}  # fmt: skip
#: and what searches for seconds
_STARTERS |= {"run_state_machine_as_test"}
#: servers that hold none of our code
_SERVERS = {"RedisServer", "find_redis_binary", "ObjectStore"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that start a process, by the names that they and their fixtures mention."""
    starting = [item for item in items if isinstance(item, pytest.Function) and _starts_a_process(item)]
    config.hook.pytest_deselected(items=starting)
    items[:] = [item for item in items if item not in set(starting)]


def _starts_a_process(item: pytest.Function) -> bool:
    fixtures = [one.func for name in item.fixturenames for one in item._fixtureinfo.name2fixturedefs.get(name, ())]
    seen: set[Any] = set()
    return any(_mentions(function, seen) for function in (item.function, *fixtures))


def _mentions(thing: Any, seen: set[Any]) -> bool:
    """Whether a function or class of the tests mentions a starter, itself or by those of the tests that it uses."""
    name = getattr(thing, "__name__", "")
    if thing in seen or name in _SERVERS or not getattr(thing, "__module__", "").startswith(("tests", "conftest")):
        return False
    seen.add(thing)
    functions = (
        [thing] if inspect.isfunction(thing) else [one for _, one in inspect.getmembers(thing, inspect.isfunction)]
    )
    for function in map(inspect.unwrap, functions):
        names = set(_names(function.__code__))
        if names & _STARTERS:
            return True
        known = (function.__globals__.get(one) for one in names)
        if any(_mentions(one, seen) for one in known if inspect.isfunction(one) or inspect.isclass(one)):
            return True
    return False


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
