"""The application as a whole: its document, and the page that shows it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest_asyncio
from fastapi.routing import APIRoute

from app.api import create_app
from inference.settings import Settings


@pytest_asyncio.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


async def test_each_operation_has_a_name_for_generated_clients(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    names = [each["operationId"] for path in document["paths"].values() for each in path.values()]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert [name for name in names if not re.fullmatch(r"[a-z][a-z_0-9]{2,40}", name)] == []
    assert {"predict", "predict_many", "enqueue_predictions", "get_job", "get_hit_rate", "start_run"} <= set(names)


def test_no_request_waits_for_routes_to_be_built() -> None:
    first, second = ([one for one in create_app(Settings()).routes if isinstance(one, APIRoute)] for _ in range(2))
    assert len(first) > 30
    # built once, when the modules were imported
    assert [id(one) for one in first] == [id(one) for one in second]


async def test_the_page_of_the_document_needs_no_other_host(client: httpx.AsyncClient) -> None:
    page = (await client.get("/docs")).text
    files = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(files) == 3
    for file in files:
        assert file.startswith("/docs/")
        assert len((await client.get(file)).content) > 1_000
    assert "//" not in page.replace("<!--", "").split("SwaggerUIBundle")[0].replace("<!DOCTYPE", "")


async def test_a_file_that_is_not_there_is_a_404(client: httpx.AsyncClient) -> None:
    for path in ("/docs/nothing.js", "/docs/%2e%2e/__init__.py"):
        assert (await client.get(path)).status_code == 404
