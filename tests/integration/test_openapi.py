"""The OpenAPI document against the real API: schemathesis makes requests of it, good and bad ones, and checks answers.

Redis and the worker are real. `GET /predict/{entity_id}` goes beside FastAPI and writes its own entry.
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.support.flights import write_flights
from tests.support.stack import Stack

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

#: for each operation, beside those that cover every constraint of its schema
EXAMPLES = 8
#: a 503 is an answer that the document knows: a budget of 1 ms cannot be kept
CONFIG = """
[checks]
# nothing here is deleted, keys have a test of their own, and what fits a schema may be an entity that nobody knows
positive_data_acceptance.enabled = false
use_after_free.enabled = false
ensure_resource_availability.enabled = false
ignored_auth.enabled = false
not_a_server_error.expected-statuses = ["2XX", "4XX", 503]

# TensorFlow Serving answers a wrong method with 400, and so does whoever speaks its protocol
[[operations]]
include-path-regex = "^/v1/"
checks.unsupported_method.enabled = false
"""
#: what parsers, patterns, paths, terminals and templates stumble over, in the place of any text
WORST = [
    "", " ", ".", "..", "../../../../etc/passwd", "%2e%2e%2f", "%00", "\0", "a\0b", "a\nb", "x\r\nSet-Cookie: a=b",
    "\x1b[2J", "\u202e\u2066abc", "\ufeff", "\u2028", "\ufffe\uffff", "e\u0301" * 500,
    "\U0001f469\u200d\U0001f680" * 200, "\u0130\u00df", "'; DROP TABLE x; --", "{{7*7}}",
    "${jndi:ldap://127.0.0.1:1/x}", "<script>alert(1)</script>", "$(sleep 9)", "%s%n%d", "**" * 100 + "z",
    "**/" * 100, "[z-a]", "(a+)+$", "file:///etc/passwd", "s3://b/k", "http://169.254.169.254/", "//host/x", "null",
    "true", "NaN", "-Infinity", "1e999", "-0", "0x10", "1_000", "9" * 4000, "x" * 20_000, "[" * 3000, '{"a":' * 300,
    "9999-12-31T23:59:59.999999-23:59", "0000-00-00T00:00:00Z", "P1Y", "1e9d", "__proto__", "constructor",
]  # fmt: skip
WORST_NUMBERS = [0, -1, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**400]


#: what only a body can hold
WORST_IN_BODIES = ["\ud800", True, None, [], {}, [[]], [None], {"": {}}, {"x" * 300: 1}]
#: requests that are plain but for the one value
PLAIN_PARAMETERS = {"entity_id": "F7", "model": "delay", "version": "1", "label": "stable"}
PLAIN_BODIES: dict[str, Any] = {
    "/predict": {"entity_ids": ["F7"]},
    "/predictions": {"entity_ids": ["F7"]},
    "/features": {"items": [{"entity_id": "F7", "features": {"distance": 1.0}}]},
    "/features/{entity_id}": {"features": {"distance": 1.0}},
    "infer": {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1.0]}]},
    ":predict": {"instances": [1.0]},
    ":classify": {"examples": [{"x": 1.0}]},
    ":regress": {"examples": [{"x": 1.0}]},
}
MORE_FIELDS = (".instances[*].distance", ".overrides.distance", ".features.distance", ".items[*].features.distance",
               ".inputs[*].name", ".inputs[*].datatype", ".inputs[*].shape[*]", ".inputs[*].data", ".examples[*].x",
               ".outputs[*].name", ".parameters.x", ".inputs.x", ".context.x")  # fmt: skip


def worst_values(document: Path) -> str:
    """Return the settings that have schemathesis put the worst values into half of all parameters and fields."""
    values = json.dumps([*WORST, *WORST_NUMBERS], ensure_ascii=False)  # TOML writes both as JSON does
    often = '{ dictionary = "worst", probability = 0.5 }'
    told = json.loads(document.read_bytes())
    bodies = [
        operation["requestBody"]["content"]["application/json"]["schema"]
        for operations in told["paths"].values()
        for operation in operations.values()
        if "requestBody" in operation
    ]
    fields = {field for body in bodies for field in fields_of(body, told["components"]["schemas"])}
    kinds = "".join(f"{kind} = {often}\n" for kind in ("string", "integer", "number"))
    bound = "".join(f'"body{field}" = {often}\n' for field in sorted(fields))
    return f"[dictionaries.worst]\nvalues = {values}\n[generation.dictionaries]\n{kinds}[parameters]\n{bound}"


def fields_of(schema: dict[str, Any], named: dict[str, Any]) -> Iterator[str]:
    """Yield the paths of a body's fields as schemathesis writes them, such as `.items[*].features`."""
    if "$ref" in schema:
        yield from fields_of(named[schema["$ref"].rpartition("/")[2]], named)
    for name, field in schema.get("properties", {}).items():
        yield f".{name}"
        yield from (f".{name}{inner}" for inner in fields_of(field, named))
    for branch in schema.get("anyOf", ()):
        yield from fields_of(branch, named)
    if "items" in schema:
        yield "[*]"
        yield from (f"[*]{inner}" for inner in fields_of(schema["items"], named))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("openapi")
    with Stack(folder, write_flights(folder)) as stack:
        stack.start("realtime", "maintenance", "api")
        stack.wait_ready()
        assert stack.cli("features", "load", "delay", "flights.parquet").returncode == 0
        yield stack


@pytest.fixture(scope="module")
def document(stack: Stack) -> Path:
    """The document in a file: a wrong key may not read it."""
    file = stack.folder / "openapi.json"
    file.write_bytes(httpx.get(f"{stack.url}/openapi.json").content)
    return file


def schemathesis(
    stack: Stack, folder: Path, *options: str, location: Path | None = None, more: str = "", examples: int = EXAMPLES
) -> subprocess.CompletedProcess[str]:
    """Test the API that runs, by its own document; what was wrong is in the output. `more`: settings of the tool."""
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG + more)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", config, "run", "--url", stack.url]
    return subprocess.run(
        [*command, location or f"{stack.url}/openapi.json", "--max-examples", str(examples), "--continue-on-failure",
         "--no-color", *options],
        cwd=folder, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_every_answer_is_one_that_the_document_promises(stack: Stack, tmp_path: Path) -> None:
    done = schemathesis(stack, tmp_path, "--phases", "coverage,fuzzing,stateful", "--seed", "7")
    assert done.returncode == 0, done.stdout + done.stderr
    paths = httpx.get(f"{stack.url}/openapi.json").json()["paths"]
    assert "get" in paths["/predict/{entity_id}"]
    assert f"Tested: {sum(map(len, paths.values()))}" in done.stdout, done.stdout
    assert httpx.get(f"{stack.url}/predict/F7").json()["prediction"] == 8.0, "everything still works"


@pytest.mark.slow
@pytest.mark.parametrize(("key", "examples"), [("without keys", 20), ("a key that may do all", 20), ("a wrong key", 5)])
def test_the_worst_values_neither_break_nor_hold_up_anything(
    stack: Stack, document: Path, tmp_path: Path, key: str, examples: int
) -> None:
    settings = stack.folder / "forecache.toml"
    before, shown = settings.read_text(), list[str]()
    operations = sum(map(len, json.loads(document.read_bytes())["paths"].values()))
    if key != "without keys":
        secret = "0123456789abcdef" * 2
        digest = hashlib.sha256((secret if key != "a wrong key" else "another").encode()).hexdigest()
        scopes = '["read", "enqueue", "write", "admin"]'
        settings.write_text(f'{before}\n[api.keys.all]\nhash = "sha256:{digest}"\nscopes = {scopes}\n')
        shown = ["--header", f"X-API-Key: {secret}"]
    start_again(stack)
    try:
        done = schemathesis(
            stack, tmp_path, "--phases", "coverage,fuzzing", "--seed", "11", "--request-timeout", "30",
            "--checks", "not_a_server_error,status_code_conformance", *shown,
            location=document, more=worst_values(document), examples=examples,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"Tested: {operations}" in done.stdout, done.stdout
        log = stack.log("api")
        assert not [word for word in ("Traceback", "request.failed") if word in log], log[-5000:]
        stack.wait_ready()
    finally:
        settings.write_text(before)
        start_again(stack)


def start_again(stack: Stack) -> None:
    """Have the API read its settings anew, with a log of its own."""
    stack.stop("api", signal.SIGTERM)
    (stack.folder / "api.log").unlink()
    stack.start("api")
    stack.wait_ready()


@pytest.mark.slow
def test_each_of_them_in_each_place_of_a_plain_request_is_answered(stack: Stack, document: Path) -> None:
    told = json.loads(document.read_bytes())
    asked = 0
    with httpx.Client(base_url=stack.url, timeout=30) as client:
        for path, operations in told["paths"].items():
            for method, operation in operations.items():
                for request in requests_of(path, operation, told["components"]["schemas"]):
                    answer = client.request(method, **request)
                    assert answer.status_code < 500 or answer.status_code in (503, 504), (request, answer.text)
                    asked += 1
    log = stack.log("api")
    assert not [word for word in ("Traceback", "request.failed") if word in log], log[-5000:]
    assert asked > 10_000
    assert httpx.get(f"{stack.url}/predict/F8").json()["prediction"] == 9.0


def requests_of(path: str, operation: dict[str, Any], named: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a request for each place of an operation and each of the worst values there."""
    plain = {"url": _filled(path, {})}
    content = operation.get("requestBody")
    if content:
        plain["json"] = next((body for end, body in PLAIN_BODIES.items() if path.endswith(end)), {})
    for parameter in operation.get("parameters", ()):
        for value in map(str, (*WORST, *WORST_NUMBERS)):
            if parameter["in"] == "path":
                yield {**plain, "url": _filled(path, {parameter["name"]: value})}
            elif parameter["in"] == "query":
                yield {**plain, "params": {parameter["name"]: value}}
    if content:
        fields = set(fields_of(content["content"]["application/json"]["schema"], named))
        deeper = [field for field in MORE_FIELDS if field.split("[")[0].split(".")[1] in {f[1:] for f in fields}]
        for field in sorted({*fields, *deeper}):
            for value in (*WORST, *WORST_NUMBERS, *WORST_IN_BODIES):
                yield {"url": plain["url"], "content": json.dumps(_with(plain["json"], field, value)),
                       "headers": {"content-type": "application/json"}}  # fmt: skip


def _filled(path: str, values: dict[str, str]) -> str:
    return re.sub(r"{(\w+)}", lambda name: quote((PLAIN_PARAMETERS | values).get(name[1], "x"), safe=""), path)


def _with(body: Any, field: str, value: Any) -> Any:
    """Return a body with a value at the path of a field; what is missing on the way there is made."""
    step, _, rest = field.lstrip(".").replace("[*]", ".[*]").lstrip(".").partition(".")
    key = 0 if step == "[*]" else step
    if key == 0:
        changed = [*body] if isinstance(body, list) and body else [None]
    else:
        changed = {**body} if isinstance(body, dict) else {}
    inner = changed[0] if key == 0 else changed.get(key)
    changed[key] = _with(inner, rest, value) if rest else value
    return changed
