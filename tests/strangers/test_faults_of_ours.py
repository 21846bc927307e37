"""A right answer that cannot be kept is still given, and what fails beside the model is never told as the model's."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import pytest
import redis
import structlog.testing

from app.api.application import create_app
from app.api.problems import problem_of
from app.http import status_of
from inference.errors import Defect, PredictionFailed, StoreUnavailable, reported_error
from inference.failures import Failures, sentence_of
from inference.features import Feature, FeatureContract, Vectoriser
from inference.models import LoadedModel, ModelHost, VersionRecord
from inference.outcomes import Outcome
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.schema import Block, DType, Signature, TensorSpec
from inference.serving.answer_sample import AnswerSample
from inference.serving.answers import Answer, step_down
from inference.serving.jobs import run_part
from inference.serving.scorer import RealtimeScorer, TensorScorer
from inference.settings import Settings
from inference.store import Origin, Table
from tasks.dispatch.dispatcher import result_of
from tests.support.serving_fakes import entry

SIGNATURE = Signature((TensorSpec("x", DType.FLOAT32),), (TensorSpec("y", DType.FLOAT32),))
CONTRACT = FeatureContract((Feature("x", DType.FLOAT32),))
SETTINGS = Settings.model_validate({"models": {"m": {"path": "m", "features": "t.parquet"}}})
WIDE = 1769862896123456789


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged, in the place of printing it."""
    with structlog.testing.capture_logs() as logs:
        yield logs


class Doubling:
    """Gives 2x; raises what it is told to."""

    signature, device = SIGNATURE, "cpu-1"
    error: Exception | None = None

    def predict(self, inputs: Block) -> Block:
        if self.error is not None:
            raise self.error
        return {"y": inputs["x"] * 2}


class Host:
    """Holds one version of model m."""

    def __init__(self, version: int = 1) -> None:
        self.model = Doubling()
        record = VersionRecord(
            version=version, state="ready", signature=SIGNATURE, contract=CONTRACT, fingerprint="f", inspected_at=0.0
        )
        self.loaded = LoadedModel("m", record, Vectoriser(CONTRACT, SIGNATURE), self.model)

    def versions(self) -> dict[str, tuple[int, ...]]:
        return {"m": (self.loaded.record.version,)}

    def written_by(self, model: str) -> None:
        """Another model's contract, whose features this one reads: none."""

    def get(self, model: str, version: int | None = None) -> LoadedModel:
        return self.loaded

    def share_out(self, model: str, entity_ids: Sequence[str], positions: list[int]) -> list[Any]:
        return [(self.loaded, positions)]


Tables = Callable[..., Table]


def broken(table: Table, method: str, error: Exception) -> Table:
    """Have a method of a table raise an error."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    setattr(table.overlay if method == "upsert" else table, method, fail)
    return table


def scorer(predictions: Table, known: Table, *, host: Host | None = None, sample: Any = None) -> RealtimeScorer:
    known.overlay.upsert(
        ["e1", "e2"], CONTRACT.stored_fields, {"x": np.array([1.5, 2.5], np.float32)}, as_of=np.array([5.0, 5.0]),
        computed_at=5.0, model_version=0, origin=Origin.UPSERT, keep_s=60,
    )  # fmt: skip
    return RealtimeScorer(
        SETTINGS, cast("ModelHost", host or Host()), lambda _: predictions, lambda _: known, sample=sample
    )


def values(result: dict[str, Any]) -> list[Any]:
    return [one.get("prediction", one.get("error", {}).get("code")) for one in result["predictions"]]


@pytest.mark.parametrize(
    "error",
    [
        struct.error("'I' format requires 0 <= number <= 4294967295"),
        OverflowError("int too big to convert"),
        redis.ResponseError("ERR Error running script"),
        StoreUnavailable("gone"),
        TypeError("cannot store a datetime"),
    ],
)
def test_an_answer_that_cannot_be_kept_is_given_all_the_same(
    error: Exception, logs: list[Any], new_table: Tables
) -> None:
    it = scorer(broken(new_table(), "upsert", error), new_table())
    for _ in range(3):
        assert values(it.predict_entities("m", ["e1", "e2"])) == [3.0, 5.0]
    assert it.explain_entity("m", ["e1"])["predictions"][0]["prediction"] == 3.0
    assert [line["event"] for line in logs] == ["prediction.keep.failed"], "told once while it repeats"


def test_an_answer_is_given_though_the_sample_for_parity_fails(new_table: Tables) -> None:
    def fail(*_: object) -> None:
        raise KeyError("inputs")

    sample = cast("AnswerSample", SimpleNamespace(wants=lambda _: True, remember=fail))
    assert values(scorer(new_table(), new_table(), sample=sample).predict_entities("m", ["e1"])) == [3.0]


def test_an_answer_of_a_version_of_63_bits_is_given_and_kept(new_table: Tables) -> None:
    kept = new_table()
    kept.versions.activate(WIDE)
    result = scorer(kept, new_table(), host=Host(WIDE)).predict_entities("m", ["e1"])
    assert (result["model_version"], values(result)) == (WIDE, [3.0])
    assert json.loads(json.dumps(result))["model_version"] == WIDE
    [stored] = kept.read(["e1"])
    assert stored is not None
    assert stored.model_version == WIDE


def test_what_fails_beside_the_model_is_an_error_of_ours_for_the_rows_without_one(new_table: Tables) -> None:
    features = broken(new_table(), "read_block", TypeError("a dictionary of a driver's"))
    result = scorer(new_table(), features).predict_entities("m", ["", "e1"])
    assert values(result) == ["bad-entity-id", "internal"]
    told = result["predictions"][1]["error"]["message"]
    assert "not the model" in told
    assert "dictionary" not in told


def test_what_the_model_raises_is_the_models(new_table: Tables) -> None:
    host = Host()
    host.model.error = PredictionFailed("no such word")
    assert values(scorer(new_table(), new_table(), host=host).predict_entities("m", ["e1"])) == ["prediction-failed"]


def test_a_defect_is_logged_for_each_request_and_its_traceback_once(logs: list[Any], new_table: Tables) -> None:
    it = scorer(new_table(), broken(new_table(), "read_block", ZeroDivisionError()))
    for _ in range(3):
        it.predict_entities("m", ["e1"])
    told = [line for line in logs if line["event"] == "request.failed"]
    assert ["exc_info" in line for line in told] == [True, False, False]
    assert {line["model"] for line in told} == {"m"}


def test_tensors_too(logs: list[Any]) -> None:
    class Lost(Host):
        def versions(self) -> dict[str, tuple[int, ...]]:
            raise RuntimeError("changed size during iteration")

    tensors = TensorScorer(SETTINGS, cast("ModelHost", Lost()), lambda *_: 0.0)
    assert tensors.predict_tensors("m", {}, version=1)["error"]["code"] == "internal"


@pytest.mark.parametrize("kind", ["struct.error", "ValueError", "UnknownError"])
def test_a_task_that_raised_is_told_as_ours(kind: str) -> None:
    failure = {"exc_type": kind, "exc_message": ["'I' format requires …"], "exc_module": "builtins"}
    with pytest.raises(Defect) as told:
        result_of({"status": "FAILURE", "result": failure, "traceback": None}, "t")
    problem = problem_of(told.value)
    assert (status_of(told.value), problem["code"]) == (500, "internal")
    assert "model" not in problem["detail"]


def test_a_defect_travels_between_processes_and_a_default_stands_in_for_it() -> None:
    error = reported_error(Defect("a worker failed").to_json())
    assert isinstance(error, Defect)
    told = step_down("m", "e1", error, default=0.5, now=9.0)
    assert isinstance(told, Answer)
    assert told.outcome is Outcome.DEFAULT
    stale = step_down("m", "e1", error, stale=entry(0.7), default=0.5, now=9.0)
    assert isinstance(stale, Answer)
    assert stale.prediction == 0.7
    assert step_down("m", "e1", PredictionFailed("nan"), default=0.5, now=9.0) != told


@pytest.mark.integration
@pytest.mark.parametrize("answer", [KeyError("predictions"), {"predictions": [{1, 2}]}], ids=["raises", "no JSON"])
def test_a_job_whose_part_fails_beside_the_model_ends_as_ours(redis_client: Client, answer: Any) -> None:
    keys = Keys("t")
    redis_client.hset(keys.job("j"), mapping={
        "state": "running", "model": "m", "kind": "entities", "deadline": "", "overrides": "", "parts": "1",
    })  # fmt: skip
    redis_client.hset(keys.job_inputs("j"), "0", '["e1"]')

    def predict(*_: object, **__: object) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises((KeyError, TypeError, AttributeError)):
        run_part(redis_client, keys, cast("Any", SimpleNamespace(predict_entities=predict)), "j", 0)
    told: Any = redis_client.hgetall(keys.job("j"))
    assert told[b"state"] == b"failed"
    assert json.loads(told[b"error"])["code"] == "internal"


@pytest.mark.parametrize("path", ["/runs", "/hit-rate", "/predict/e1", "/v2/models/m"])
async def test_a_route_that_fails_answers_in_its_form_and_is_logged_with_one_traceback(
    path: str, logs: list[Any]
) -> None:
    app = create_app(SETTINGS)
    app.process = SimpleNamespace(settings=SETTINGS)  # which has nothing that a route needs
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        answers = [await client.get(path) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {500}
    assert "AttributeError" not in answers[0].text
    assert answers[0].headers["x-request-id"]
    told = [line for line in logs if line["event"] == "request.failed"]
    assert len(told) == 3
    assert sum("exc_info" in line for line in told) <= 1


# --- the mechanism ---


def test_the_sentence_of_an_error_is_one_line_without_secrets() -> None:
    assert sentence_of(StoreUnavailable("gone")) == "gone"
    assert sentence_of(ValueError()) == "ValueError"
    assert sentence_of(KeyError("x")) == "KeyError: 'x'"
    assert sentence_of(OSError("a\n\nb")) == "OSError: a"
    assert sentence_of(ValueError("redis://me:hush@host:1")) == "ValueError: redis://***@host:1"
    assert sentence_of(ValueError("\udcff")).encode() == rb"ValueError: \udcff"
    assert len(sentence_of(ValueError("x" * 10_000))) == 500


def test_a_failure_is_told_once_and_again_after_it_was_over(logs: list[Any]) -> None:
    failures = Failures("test", "look")

    def fail(text: str) -> None:
        with failures.kept_here("m", model="m"):
            raise ValueError(text)

    for text in ("a", "a", "b", "b"):
        fail(text)
    with failures.kept_here("m", model="m"):
        pass
    with failures.kept_here("m", model="m"):
        pass
    fail("a")
    assert [(line["event"], line.get("error"), "exc_info" in line) for line in logs] == [
        ("look.failed", "ValueError: a", True),
        ("look.failed", "ValueError: b", False),  # the same line of code: its traceback is known
        ("look.recovered", None, False),
        ("look.failed", "ValueError: a", True),
    ]


def test_each_thing_is_told_of_by_itself_and_few_are_remembered(logs: list[Any]) -> None:
    failures = Failures("test", "look")
    for number in range(3000):
        failures.tell(StoreUnavailable("gone"), f"thing {number}")
    assert len(logs) == 3000
    assert len(failures._ongoing) == 1000


def test_what_ends_a_program_is_let_through() -> None:
    with pytest.raises(KeyboardInterrupt), Failures("test", "look").kept_here():
        raise KeyboardInterrupt
