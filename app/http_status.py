"""The HTTP status of every error, the same on the API and on the dashboard."""

from __future__ import annotations

from inference.errors import (
    BadInput,
    Conflict,
    Forbidden,
    ForecacheError,
    NotFound,
    RateLimited,
    TooHeavy,
    Unauthorized,
    Unavailable,
    UnknownEntity,
    UnknownModel,
    UnsupportedMedia,
)

#: the first that fits decides; what fits none is our own trouble, 500
_STATUS: tuple[tuple[type[ForecacheError], int], ...] = (
    (Unauthorized, 401),
    (Forbidden, 403),
    (UnknownModel, 404),
    (UnknownEntity, 404),
    (NotFound, 404),
    (Conflict, 409),
    (UnsupportedMedia, 415),
    (BadInput, 400),
    (TooHeavy, 413),
    (RateLimited, 429),
    (Unavailable, 503),
)


def status_of(error: ForecacheError) -> int:
    """Return the HTTP status of an error."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
