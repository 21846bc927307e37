"""Defines all errors of Forecache. Every class has a `code` that travels over HTTP and in task results.

A message is one line for a person: it names the problem and, if there is one, the fix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from inference.redaction import without_secrets

#: how many characters of a client's text an error repeats
LONGEST_QUOTE = 64
#: how many characters of an error's message and of its field leave a process
LONGEST_MESSAGE = 2000
LONGEST_FIELD = 200


class ForecacheError(Exception):
    """Base class of all errors that Forecache raises on purpose.

    `field` names the request field, setting, column or feature at fault; None if there is no single one.
    `retry_after_s`: seconds after which a retry may succeed; None if unknown or never.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, field: str | None = None, retry_after_s: float | None = None) -> None:
        # many messages quote a driver, whose text may contain its password
        self.message = without_secrets(_shortened(_in_print(message)))
        super().__init__(self.message)
        self.field = field
        self.retry_after_s = retry_after_s

    def to_json(self) -> dict[str, str | None]:
        """Return the error as plain JSON for task results and jobs; `reported_error` reads it.

        Cuts a long field name, since a result may repeat it in every row.
        """
        field = None if self.field is None else cut(self.field, LONGEST_FIELD)
        return {"code": self.code, "message": self.message, "field": field}


class BadInput(ForecacheError):
    """Raised when the user's input is not acceptable as it is."""

    code = "bad-input"


class UnsupportedMedia(BadInput):
    """Raised when a request's body has an unsupported type or encoding."""

    code = "unsupported-media-type"


class Unsupported(BadInput):
    """Raised when a protocol has a method or an extension that is missing here."""

    code = "unsupported"


class SettingsError(BadInput):
    """Raised when a setting is unknown, missing or malformed."""

    code = "bad-settings"


class BadEntityId(BadInput):
    """Raised when an entity id is empty, too long, or holds control characters."""

    code = "bad-entity-id"


class SourceError(BadInput):
    """Raised when a table of features cannot be read or does not fit its feature contract."""

    code = "bad-source"


class ContractError(BadInput):
    """Raised when a feature contract does not fit the model's signature, or a value does not fit the contract."""

    code = "bad-features"


class ModelError(BadInput):
    """Raised when a model folder is missing, empty, corrupt, or in an unsupported format."""

    code = "bad-model"


class UnknownModel(BadInput):
    """Raised when a model's name is not in the settings."""

    code = "unknown-model"


class UnknownEntity(ForecacheError):
    """Raised when neither the prediction store nor the feature store knows an entity."""

    code = "unknown-entity"


class EntityForgotten(UnknownEntity):
    """Raised when an entity is on its model's list of forgotten entities."""

    code = "forgotten"


class Unauthorized(ForecacheError):
    """Raised when a request carries no known API key."""

    code = "unauthorized"


class Forbidden(ForecacheError):
    """Raised when a request is not allowed: its key lacks the scope, or a page of another site sent it."""

    code = "forbidden"


class NotFound(ForecacheError):
    """Raised when a run, job or generation of that name does not exist (any more)."""

    code = "not-found"


class Conflict(ForecacheError):
    """Raised when the current state forbids a valid request, such as a second run at the same time."""

    code = "conflict"


class StaleAttempt(ForecacheError):
    """Raised in a worker that lost its claim on a chunk. The worker drops the work and reports no error."""

    code = "stale-attempt"


class Unavailable(ForecacheError):
    """Raised when a needed part of the system did not answer. An outage never looks like a miss."""

    code = "unavailable"


class StoreUnavailable(Unavailable):
    """Raised when the cache Redis did not answer in time."""

    code = "store-unavailable"


class StoreFull(StoreUnavailable):
    """Raised when the cache Redis refused a write because its memory is full; reads still work."""

    code = "store-full"


class UnknownFormat(StoreUnavailable):
    """Raised when another release wrote stored data in a format that this release does not know."""

    code = "unknown-format"


class Unreadable(UnknownFormat):
    """Raised when stored data is not ours or is damaged."""

    code = "unreadable"


class FeaturesUnavailable(Unavailable):
    """Raised when a fallback did not answer and no other source knew the entity's features."""

    code = "features-unavailable"


class BrokerUnavailable(Unavailable):
    """Raised when the broker did not accept a task or did not answer."""

    code = "broker-unavailable"


class ModelUnavailable(Unavailable):
    """Raised when a configured model has no active version yet."""

    code = "model-unavailable"


class DeadlineExceeded(Unavailable):
    """Raised when an answer did not arrive by its deadline."""

    code = "deadline-exceeded"


class WorkersUnavailable(Unavailable):
    """Raised when a model's workers have not answered for a while, so no request is sent to them."""

    code = "workers-unavailable"


class Overloaded(Unavailable):
    """Raised when there is too much work already: an answer would come too late or find no room."""

    code = "overloaded"


class RateLimited(ForecacheError):
    """Raised when an API key has used up its rate limit for now."""

    code = "rate-limited"


class TooHeavy(ForecacheError):
    """Raised when one request exceeds its key's limit for a whole window, so waiting does not help."""

    code = "too-heavy"


class PredictionFailed(ForecacheError):
    """Raised when the model raised an error or returned a non-finite number for one entity."""

    code = "prediction-failed"


class Defect(ForecacheError):
    """Raised when an unexpected error occurred. It is our fault, never reported as the model's."""

    code = "internal"


class FunctionFailed(PredictionFailed):
    """Raised when a function of a feature contract raised an error or did not return its group's features."""

    code = "function-failed"


class ModelOutOfMemory(PredictionFailed):
    """Raised when a model call did not fit into the device's memory; fewer rows may fit."""

    code = "model-out-of-memory"


def _subclasses(cls: type[ForecacheError]) -> list[type[ForecacheError]]:
    return [cls, *(deeper for child in cls.__subclasses__() for deeper in _subclasses(child))]


#: code → class, to rebuild an error from a task result
ERRORS_BY_CODE: dict[str, type[ForecacheError]] = {cls.code: cls for cls in _subclasses(ForecacheError)}


#: errors that another process may find in a request: they keep its message, which names what to correct
_FAULTS_OF_REQUESTS = (BadInput, UnknownEntity, NotFound, Conflict)
_OUR_MESSAGES: dict[type[ForecacheError], str] = {
    DeadlineExceeded: "the prediction was not computed in time",
    ModelUnavailable: "a worker cannot use the model; `forecache doctor` and the worker's log say why",
    WorkersUnavailable: "the workers have not answered for some minutes: send the request again",
    Overloaded: "the workers have no room for so many answers: send fewer rows, or try again later",
}


def reported_error(report: Any) -> ForecacheError:
    """Rebuild an error that another process reported as `ForecacheError.to_json`. Accepts any value.

    Keeps the message only for faults of the request. Other errors get a message of this process, since the worker's
    may contain an address, a model's internals, or foreign text from Redis. Anything else becomes a Defect.
    """
    given = report if isinstance(report, Mapping) else {}
    code, message, field = given.get("code"), given.get("message"), given.get("field")
    cls = ERRORS_BY_CODE.get(code, Defect) if isinstance(code, str) else Defect
    if issubclass(cls, _FAULTS_OF_REQUESTS):
        where = cut(field, LONGEST_FIELD) if isinstance(field, str) else None
        return cls(message if isinstance(message, str) else f"a worker refused this ({cls.code})", field=where)
    if issubclass(cls, Unavailable | PredictionFailed):
        return cls(_OUR_MESSAGES.get(cls, f"a worker could not compute this ({cls.code}); its log says why"))
    return Defect("a worker failed on this request, not the model; the worker's log says why")


def cut(text: str, most: int = LONGEST_QUOTE) -> str:
    """Return a text, or its start and an ellipsis when it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[:most]}…"


def _in_print(message: str) -> str:
    """Return a message with escaped control characters, except line breaks, which another protocol uses."""
    if message.isprintable():
        return message
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode() for char in message
    )


def _shortened(message: str) -> str:
    """Cut a long message, and drop the word at the cut: half a password would not be recognised as a secret."""
    if len(message) <= LONGEST_MESSAGE:
        return message
    return message[:LONGEST_MESSAGE].rpartition(" ")[0] + " …"


def quoted(sent: str | int) -> str:
    """Return a client's text for an error message: in quotes, on one line, and only its start.

    Every message that repeats a client's text uses this function or `cut`: the text may be as long as a body,
    and each row may repeat the message.
    """
    return repr(cut(sent if isinstance(sent, str) else str(sent)))


def shown(value: object) -> str:
    """Return any value as Python writes it, cut if it is long."""
    return quoted(value) if isinstance(value, str) else cut(repr(value))


def shown_name(name: str) -> str:
    """Return a column's or feature's name for a message: cut if it is long, quoted if it is not printable."""
    return cut(name) if name and name.isprintable() else quoted(name)
