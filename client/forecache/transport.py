"""What both clients tell httpx, and what they make of its answers."""

from __future__ import annotations

import ssl
from typing import Any

import httpx

from forecache.calls import Answer, Send
from forecache.version import __version__

CONNECT_S = 5.0
#: errors after which the server has read nothing of a request
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


def connection_options(url: str, api_key: str | None, ssl_ca_certs: str | None) -> dict[str, Any]:
    """Return the options of an httpx client."""
    headers = {"User-Agent": f"forecache-client/{__version__}"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    # making a context reads all certificates that the machine trusts: 25 ms that plain HTTP need not pay
    verify: Any = False
    if url.startswith("https:"):
        verify = ssl.create_default_context(cafile=ssl_ca_certs)
    return {
        "headers": headers,
        "verify": verify,
        "limits": httpx.Limits(max_connections=100),
        # a service on this machine is called without the proxy of the environment
        "trust_env": httpx.URL(url).host not in ("localhost", "127.0.0.1", "::1"),
    }


def public_url(url: str) -> str:
    """Return a URL without user and password."""
    return str(httpx.URL(url).copy_with(userinfo=b""))


def request_options(send: Send) -> dict[str, Any]:
    """Return the options of an httpx request."""
    return {
        "params": dict(send.params),
        "headers": dict(send.headers),
        "content": send.content,
        "timeout": httpx.Timeout(send.timeout_s, connect=min(send.timeout_s, CONNECT_S)),
    }


def answer_of(response: httpx.Response) -> Answer:
    """Return what the server has answered."""
    return Answer(response.status_code, response.headers, response.content)


def no_answer(error: httpx.TransportError) -> Answer:
    """Return why the server has not answered, and whether it may have read the request."""
    timed_out = isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout)
    text = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        text += "; give the file of its authority as ssl_ca_certs"
    return Answer(None, error=text, sent=not isinstance(error, _UNSENT), timed_out=timed_out)
