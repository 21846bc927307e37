"""A client of the configured HTTP API."""

from __future__ import annotations

from typing import Any

import httpx

from inference.errors import BadInput, ForecacheError, Unavailable
from inference.settings import ApiSettings
from inference.settings.processes import reachable_url

#: seconds to wait beyond the time that the API may take
_PATIENCE_S = 10.0


class Api:
    """Calls this deployment's HTTP API. A problem document becomes an error with the same text."""

    def __init__(self, settings: ApiSettings, *, transport: httpx.BaseTransport | None = None) -> None:
        self.base_url = base_url(settings)
        self._client = httpx.Client(transport=transport, **client_options(settings))

    def call(self, method: str, path: str, body: Any = None, *, timeout_s: float = 0.0) -> Any:
        """Return the JSON of an answer. `timeout_s`: how long the API may take to answer.

        Raises:
            Unavailable: nothing answers at the configured address, or the API fails (5xx).
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
    """Return the URL of the API, as seen from this machine."""
    return reachable_url(settings.host, settings.port)


def client_options(settings: ApiSettings) -> dict[str, Any]:
    """Return the arguments of an httpx client for the API: its address and the key."""
    key = settings.client_key
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else None
    # a local service is called without the HTTP proxy of the environment
    return {"base_url": base_url(settings), "headers": headers, "trust_env": False}


def nobody_answers(url: str) -> Unavailable:
    """Return the error for an address where no API listens."""
    return Unavailable(f"no API answers at {url}: start `forecache up` and wait until it is ready, or set [api] port")


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
