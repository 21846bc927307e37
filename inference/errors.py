"""The one error tree. Every class has a `code` that travels over HTTP and through task results.

A message is one line for a person: it names the thing that is wrong and, where there is one, the fix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from inference.redaction import without_secrets

#: characters of what a client sent that an error repeats
LONGEST_QUOTE = 64
#: characters of a message, and of the name of what is at fault, that leave a process
LONGEST_MESSAGE = 2000
LONGEST_FIELD = 200


class ForecacheError(Exception):
    """Base of everything that Forecache raises on purpose.

    `field` names the request field, setting, column or feature at fault; None where there is no single one.
    `retry_after_s`: after how many seconds another try is worth it; None when nobody knows, or it never is.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, field: str | None = None, retry_after_s: float | None = None) -> None:
        # a driver's words, which many a message quotes, may hold the password that it was given
        self.message = without_secrets(_shortened(_in_print(message)))
        super().__init__(self.message)
        self.field = field
        self.retry_after_s = retry_after_s

    def to_json(self) -> dict[str, str | None]:
        """Return what `reported_error` rebuilds the error from: plain JSON, as task results and jobs hold it.

        A long name is cut, since a result holds one for each of its rows.
        """
        field = None if self.field is None else cut(self.field, LONGEST_FIELD)
        return {"code": self.code, "message": self.message, "field": field}


class BadInput(ForecacheError):
    """Raised when what the user handed over cannot be accepted as it is."""

    code = "bad-input"


class UnsupportedMedia(BadInput):
    """Raised when a request's body has a type or is packed in a way that is not read."""

    code = "unsupported-media-type"


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
    """Raised when a feature contract and a model's signature, or a value and the contract, disagree."""

    code = "bad-features"


class ModelError(BadInput):
    """Raised when a model folder is missing, empty, corrupt, or of a form that cannot be served."""

    code = "bad-model"


class UnknownModel(BadInput):
    """Raised when a model's name is not in the settings."""

    code = "unknown-model"


class UnknownEntity(ForecacheError):
    """Raised when neither the prediction store nor the feature store knows an entity."""

    code = "unknown-entity"


class Unauthorized(ForecacheError):
    """Raised when a request shows no key that is known."""

    code = "unauthorized"


class Forbidden(ForecacheError):
    """Raised when a request may not do that: its key lacks the scope, or a page of another site sent it."""

    code = "forbidden"


class NotFound(ForecacheError):
    """Raised when a run, a job or a generation of that name does not exist (any more)."""

    code = "not-found"


class Conflict(ForecacheError):
    """Raised when the request is sound but the present state forbids it: a second run, a finished run."""

    code = "conflict"


class StaleAttempt(ForecacheError):
    """Raised inside a worker when its claim on a chunk was lost: the work is dropped, not an error to report."""

    code = "stale-attempt"


class Unavailable(ForecacheError):
    """Raised when a part that the answer needs did not answer: never the same as a miss."""

    code = "unavailable"


class StoreUnavailable(Unavailable):
    """Raised when the cache Redis did not answer in time."""

    code = "store-unavailable"


class StoreFull(StoreUnavailable):
    """Raised when the cache Redis refused a write because its memory is used up; reads still work."""

    code = "store-full"


class UnknownFormat(StoreUnavailable):
    """Raised when what is stored was written by a release of Forecache whose form of data is not known here."""

    code = "unknown-format"


class Unreadable(UnknownFormat):
    """Raised when what is stored is none of our data: somebody else has written it, or it is damaged."""

    code = "unreadable"


class FeaturesUnavailable(Unavailable):
    """Raised when a fallback that may know an entity's features did not answer, and nobody else knew them."""

    code = "features-unavailable"


class BrokerUnavailable(Unavailable):
    """Raised when a task could not be handed to the broker."""

    code = "broker-unavailable"


class ModelUnavailable(Unavailable):
    """Raised when a configured model has no active version yet."""

    code = "model-unavailable"


class DeadlineExceeded(Unavailable):
    """Raised when an answer was not there by its deadline."""

    code = "deadline-exceeded"


class WorkersUnavailable(Unavailable):
    """Raised when a model's workers have answered nothing for a while, so that they are not asked."""

    code = "workers-unavailable"


class Overloaded(Unavailable):
    """Raised when so much waits already that an answer could not come in time."""

    code = "overloaded"


class RateLimited(ForecacheError):
    """Raised when a key has used up what it may ask for now."""

    code = "rate-limited"


class TooHeavy(ForecacheError):
    """Raised when one request weighs more than its key may ask for in a whole window, so that waiting is no use."""

    code = "too-heavy"


class PredictionFailed(ForecacheError):
    """Raised when the model raised, or answered with a non-finite number, for one entity."""

    code = "prediction-failed"


class Defect(ForecacheError):
    """Raised when something failed that nobody foresaw: a fault of ours, which is never told as the model's."""

    code = "internal"


class FunctionFailed(PredictionFailed):
    """Raised when a function of a feature contract raised, or returned something else than its group's features."""

    code = "function-failed"


class ModelOutOfMemory(PredictionFailed):
    """Raised when a model call did not fit into the device's memory: fewer rows may."""

    code = "model-out-of-memory"


def _subclasses(cls: type[ForecacheError]) -> list[type[ForecacheError]]:
    return [cls, *(deeper for child in cls.__subclasses__() for deeper in _subclasses(child))]


#: code → class, to rebuild an error from a task result
ERRORS_BY_CODE: dict[str, type[ForecacheError]] = {cls.code: cls for cls in _subclasses(ForecacheError)}


#: what another process may find wrong with a request: only of these its own words, since they name what to correct
_FAULTS_OF_REQUESTS = (BadInput, UnknownEntity, NotFound, Conflict)
_WORDS_OF_OURS: dict[type[ForecacheError], str] = {
    DeadlineExceeded: "the prediction was not computed in time",
    ModelUnavailable: "a worker cannot use the model; `forecache doctor` and the worker's log say why",
    WorkersUnavailable: "the workers have not answered for some minutes: send it again",
    Overloaded: "the workers have no room for the answers of so many rows: send fewer rows, or later",
}


def reported_error(told: Any) -> ForecacheError:
    """Rebuild the error that another process reported, whatever stands there (`ForecacheError.to_json`).

    Trouble of ours has words of this process's own: those of a worker are for its log, and may hold an address, the
    insides of a model, or what somebody else has written into Redis. What no worker may say is a Defect.
    """
    given = told if isinstance(told, Mapping) else {}
    code, message, field = given.get("code"), given.get("message"), given.get("field")
    cls = ERRORS_BY_CODE.get(code, Defect) if isinstance(code, str) else Defect
    if issubclass(cls, _FAULTS_OF_REQUESTS):
        where = cut(field, LONGEST_FIELD) if isinstance(field, str) else None
        return cls(message if isinstance(message, str) else f"a worker refused this ({cls.code})", field=where)
    if issubclass(cls, Unavailable | PredictionFailed):
        return cls(_WORDS_OF_OURS.get(cls, f"a worker could not compute this ({cls.code}); its log says why"))
    return Defect("a worker failed on this request, not the model; the worker's log says why")


def cut(text: str, most: int = LONGEST_QUOTE) -> str:
    """Return a text, or its start and an ellipsis when it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[:most]}…"


def _in_print(message: str) -> str:
    """Return a message whose control characters are spelt, but for line breaks: of those another protocol has some."""
    if message.isprintable():
        return message
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode() for one in message
    )


def _shortened(message: str) -> str:
    """Return a message that is not too long, without the word in which it is cut: half a password is not recognised."""
    if len(message) <= LONGEST_MESSAGE:
        return message
    return message[:LONGEST_MESSAGE].rpartition(" ")[0] + " …"


def quoted(sent: str | int) -> str:
    """Return what a client sent as an error repeats it: in quotes, on one line, and no more than its start.

    Every message that repeats a client's text does it by this function or by `cut`: the text may be as long as a body,
    and the message may be repeated for each row.
    """
    return repr(cut(sent if isinstance(sent, str) else str(sent)))


def shown(value: object) -> str:
    """Returns a value as Python writes it, or the start of that: what a setting holds, of whatever type."""
    return quoted(value) if isinstance(value, str) else cut(repr(value))


def shown_name(name: str) -> str:
    """Returns a column's or feature's name as it can stand in a line: its start, quoted if the line would break."""
    return cut(name) if name and name.isprintable() else quoted(name)
