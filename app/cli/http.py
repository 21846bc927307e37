"""Talking to the configured API."""

from __future__ import annotations

from typing import Any

import httpx

from inference.errors import BadInput, ForecacheError, Unavailable
from inference.settings import ApiSettings
from inference.settings.processes import reachable_url

#: seconds on top of what the API was asked to take
_PATIENCE_S = 10.0


class Api:
    """The HTTP API of this deployment. Problem documents become errors with their own words."""

    def __init__(self, settings: ApiSettings, *, transport: httpx.BaseTransport | None = None) -> None:
        self.base_url = base_url(settings)
        self._client = httpx.Client(transport=transport, **client_options(settings))

    def call(self, method: str, path: str, body: Any = None, *, timeout_s: float = 0.0) -> Any:
        """Return the JSON of an answer. `timeout_s`: what the API may need on purpose.

        Raises:
            Unavailable: nothing answers at the configured address, or the API itself has trouble.
            BadInput: the API refused the request (4xx).
        """
        try:
            response = self._client.request(method, path, json=body, timeout=timeout_s + _PATIENCE_S)
        except httpx.TimeoutException as error:
            raise Unavailable(f"the API at {self.base_url} did not answer in time") from error
        except httpx.TransportError as error:
            raise nobody_answers(self.base_url) from error
        if response.is_error:
            raise _as_error(response)
        return response.json()


def base_url(settings: ApiSettings) -> str:
    """Return the URL under which this machine reaches the API."""
    return reachable_url(settings.host, settings.port)


def client_options(settings: ApiSettings) -> dict[str, Any]:
    """Return what every client of the API is made with: its address, and the key that it shows."""
    key = settings.client_key
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else None
    # an HTTP proxy of the environment has no business between us and a local service
    return {"base_url": base_url(settings), "headers": headers, "trust_env": False}


def nobody_answers(url: str) -> Unavailable:
    """Return the error for an address at which no API listens."""
    return Unavailable(f"no API answers at {url}: start `forecache up`, or set [api] port")


def problem_text(problem: dict[str, Any]) -> str:
    """Return a problem document as one line."""
    return str(problem.get("detail") or problem.get("message") or problem.get("title") or problem)


def _as_error(response: httpx.Response) -> ForecacheError:
    try:
        body = response.json()
    except ValueError:
        body = {}
    text = problem_text(body) if isinstance(body, dict) and body else f"HTTP {response.status_code}"
    return BadInput(text) if response.is_client_error else Unavailable(text)
