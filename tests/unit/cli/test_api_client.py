"""Talking to the API: answers, problems, silence."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from app.cli.api_client import Api, base_url
from inference.errors import BadInput, Unavailable
from inference.settings import ApiSettings


def api(handler: Callable[[httpx.Request], httpx.Response]) -> Api:
    return Api(ApiSettings(), transport=httpx.MockTransport(handler))


def test_an_answer_is_its_json() -> None:
    def echo(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"path": request.url.path, "body": json.loads(request.content)})

    body = {"entity_ids": ["a/b %2F"]}
    assert api(echo).call("POST", "/predict", body) == {"path": "/predict", "body": body}


def test_a_refusal_comes_with_the_problems_own_words() -> None:
    problem = {"title": "bad", "detail": "entity_id is empty", "status": 400}
    with pytest.raises(BadInput, match=r"^entity_id is empty$"):
        api(lambda _: httpx.Response(400, json=problem)).call("GET", "/x")


def test_trouble_of_the_api_is_no_fault_of_the_request() -> None:
    with pytest.raises(Unavailable, match="HTTP 502"):
        api(lambda _: httpx.Response(502, text="<html>")).call("GET", "/x")


def test_when_nothing_listens_the_address_and_the_way_out_are_named() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(Unavailable, match=r"no API answers at http://127.0.0.1:8000: start `forecache up`"):
        api(refuse).call("GET", "/x")


def test_silence_is_told_from_absence() -> None:
    def keep_waiting(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow", request=request)

    with pytest.raises(Unavailable, match="did not answer in time"):
        api(keep_waiting).call("GET", "/x")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("api.example", "http://api.example:8000"),
    ],
)
def test_an_address_for_listening_becomes_one_for_asking(host: str, url: str) -> None:
    assert base_url(ApiSettings(host=host)) == url


def test_the_configured_key_is_shown() -> None:
    def echo(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=request.headers["authorization"])

    settings = ApiSettings.model_validate({"client_key": "fc_secret"})
    assert Api(settings, transport=httpx.MockTransport(echo)).call("GET", "/x") == "Bearer fc_secret"
