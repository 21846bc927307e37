"""Defines the errors that a client raises: one class for each kind of problem that the API answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ForecacheError(Exception):
    """Base class of all errors of this package.

    `code`: the problem's name by the API, such as `unknown-entity`. `field`: the wrong field, None if it is not one.
    `status`: of the HTTP answer, None without one. `retry_after_s`: seconds until a new request makes sense, None if
    the server names none. `request_id`: finds the server's log lines.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        field: str | None = None,
        status: int | None = None,
        retry_after_s: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.field = field
        self.status = status
        self.retry_after_s = retry_after_s
        self.request_id = request_id


class BadRequest(ForecacheError):
    """Raised when the request is wrong; `field` names what."""


class NotFound(ForecacheError):
    """Raised when there is no such run, job or page."""


class UnknownEntity(NotFound):
    """Raised when no features of the entity were ever loaded."""


class EntityForgotten(UnknownEntity):
    """Raised when the entity was forgotten on request."""


class UnknownModel(BadRequest):
    """Raised when no such model is configured, or several are and none was named."""


class NotAuthorized(ForecacheError):
    """Raised when the API key is missing, wrong, or lacks the scope."""


class Conflict(ForecacheError):
    """Raised when the state of a run or of features forbids it, such as a second run at a time."""


class RateLimited(ForecacheError):
    """Raised when the API key has used up its rate; `retry_after_s` says when it has room."""


class Unavailable(ForecacheError):
    """Raised when a part of the deployment is away; `code` names the part. Never raised for a miss."""


class Overloaded(Unavailable):
    """Raised when more is asked than workers compute in time."""


class DeadlineExceeded(Unavailable):
    """Raised when no answer came in time, from the server or over the network."""


class NoConnection(Unavailable):
    """Raised when nothing can be reached at the address."""


class PredictionFailed(ForecacheError):
    """Raised when the model gives no usable prediction for this input."""


class ServerFailed(ForecacheError):
    """Raised when the server has a defect; its log says why."""


class NotForecache(ForecacheError):
    """Raised when something else than Forecache's API answers at the address."""


_BY_CODE: dict[str, type[ForecacheError]] = {
    "unknown-entity": UnknownEntity,
    "forgotten": EntityForgotten,
    "unknown-model": UnknownModel,
    "conflict": Conflict,
    "overloaded": Overloaded,
    "too-heavy": Overloaded,
    "deadline-exceeded": DeadlineExceeded,
    "prediction-failed": PredictionFailed,
    "function-failed": PredictionFailed,
    "model-out-of-memory": PredictionFailed,
    "internal": ServerFailed,
}
_BY_STATUS: dict[int, type[ForecacheError]] = {
    401: NotAuthorized,
    403: NotAuthorized,
    404: NotFound,
    409: Conflict,
    429: RateLimited,
    500: ServerFailed,
    503: Unavailable,
}


def error_of(problem: Mapping[str, Any], *, retry_after_s: float | None = None) -> ForecacheError:
    """Return the error of a problem document (RFC 9457), as answers and items of them hold it."""
    code, status = str(problem.get("code", "")), problem.get("status")
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status or 0, BadRequest)
    field = problem.get("field")
    detail = str(problem.get("detail") or problem.get("message") or code)
    return kind(
        detail if field is None or field in detail else f"{field}: {detail}",
        code=code,
        field=field,
        status=status,
        retry_after_s=retry_after_s,
        request_id=problem.get("request_id"),
    )
