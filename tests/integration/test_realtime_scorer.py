"""The worker's side of real time: two versions of a model that is a line of numpy, over real tables in Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pytest

from inference.errors import BadInput, ModelUnavailable, PredictionFailed, StoreUnavailable
from inference.features import Feature, FeatureContract, Vectoriser
from inference.features.gathering import Found
from inference.models import LoadedModel, ModelHost, VersionRecord
from inference.redis.clients import Client
from inference.redis.keys import Keys, TableKind
from inference.schema import Block, DType, Signature, TensorSpec
from inference.serving import scorer as scorer_module
from inference.serving.answer_sample import AnswerSample, sampled_answers
from inference.serving.answering import MAX_MESSAGE_ROWS
from inference.serving.scorer import CLOCK_MAX_AGE_S, RealtimeScorer
from inference.settings import Settings
from inference.store import Entry, Labels, Origin, Table

pytestmark = pytest.mark.integration

KEYS = Keys("t")
ONE = (TensorSpec("y", DType.FLOAT32),)
TWO = (TensorSpec("y", DType.FLOAT32), TensorSpec("half", DType.FLOAT64))


class Times:
    """Multiplies by its version; raises for a row below zero, and has no finite answer to 1 000."""

    device = "cpu-1"

    def __init__(self, version: int, signature: Signature) -> None:
        self.version, self.signature = version, signature
        self.calls: list[int] = []

    def predict(self, inputs: Block) -> Block:
        x = inputs["x"]
        self.calls.append(len(x))
        if (x < 0).any():
            raise PredictionFailed("the model raised ValueError: negative")
        y = np.where(x == 1000, np.inf, x * self.version).astype(np.float32)
        return {"y": y, "half": y.astype(np.float64) / 2} if len(self.signature.outputs) == 2 else {"y": y}


class Host:
    """Holds versions 1, which answers, and 2, the canary of some entities."""

    def __init__(self, contract: FeatureContract, outputs: tuple[TensorSpec, ...]) -> None:
        self.error: ModelUnavailable | None = None
        self.labels = Labels()
        self.models: dict[int, Times] = {}
        self._loaded = {}
        for version in (1, 2):
            signature = Signature((TensorSpec("x", DType.FLOAT32),), outputs)
            record = VersionRecord(
                version=version, state="ready", signature=signature, contract=contract, fingerprint="f",
                inspected_at=0.0,
            )  # fmt: skip
            model = self.models[version] = Times(version, signature)
            self._loaded[version] = LoadedModel("m", record, Vectoriser(contract, signature), cast("Any", model))

    def get(self, model: str, version: int | None = None) -> LoadedModel:
        if self.error:
            raise self.error
        return self._loaded[version or 1]

    def written_by(self, model: str) -> None:
        """Its features are its own."""

    def share_out(
        self, model: str, entity_ids: Sequence[str], positions: Sequence[int]
    ) -> list[tuple[LoadedModel, list[int]]]:
        mine = [one for one in positions if self.labels.canary_for(model, entity_ids[one]) is None]
        canarys = [one for one in positions if one not in mine]
        sides = [(self.get(model), mine), (self.get(model, 2), canarys)]
        return [side for side in sides if side[1]] or sides[:1]


class Knows:
    """A fallback with one value for the ids in `values`. `outage`: why it did not answer for the others."""

    name = "sql"

    def __init__(self, outage: str | None = None, **values: float) -> None:
        self.values, self.outage = values, outage
        self.asked: list[list[str]] = []

    def find(self, entity_ids: Sequence[str], group: Any, features: Any) -> Found:
        self.asked.append(list(entity_ids))
        found = np.array([one in self.values for one in entity_ids])
        block = {"x": np.array([self.values.get(one, 0) for one in entity_ids], np.float32)}
        nan = np.full(len(entity_ids), np.nan)
        return Found(found, block, nan, ["fallback:sql"] * len(entity_ids), outage=self.outage)


class Worker:
    """A real-time worker's scorer and its tables."""

    def __init__(self, client: Client, *, default: float | None = None, outputs: tuple[TensorSpec, ...] = ONE,
                 fallback: Knows | None = None, parity: bool = False, **realtime: Any) -> None:  # fmt: skip
        contract = FeatureContract((Feature("x", DType.FLOAT32, default=default),))
        own = {
            "path": "m",
            "features": "t.parquet",
            "realtime": realtime,
            "parity": {"every": "1h", "sample": 2} if parity else {},
        }
        self.settings = Settings.model_validate({"models": {"m": own}})
        self.client, self.fields = client, contract.stored_fields
        self.predictions, self.features = (
            Table(client, KEYS.table(kind, "m"), kind=kind, model="m")
            for kind in (TableKind.PREDICTIONS, TableKind.FEATURES)
        )
        self.predictions.versions.activate(1)
        self.host = Host(contract, outputs)
        self.form = contract.stored_form
        sample = AnswerSample(self.settings, client, KEYS) if parity else None
        self.scorer = RealtimeScorer(
            self.settings, cast("ModelHost", self.host), {"m": self.predictions}.__getitem__,
            {"m": self.features}.__getitem__, {"m": fallback}.__getitem__, sample,
        )  # fmt: skip

    def load(self, values: Mapping[str, float], *, age_s: float = 60) -> float:
        """Store features that are so old; return their whole second."""
        at = float(int(self.features.now() - age_s))
        block = {"x": np.array(list(values.values()), np.float32)} | self.form.notes({}, {}, len(values))
        self.features.overlay.upsert(
            list(values), self.fields, block, as_of=np.full(len(values), at), computed_at=at, model_version=0,
            origin=Origin.UPSERT, keep_s=3600,
        )  # fmt: skip
        return at

    def predict(self, *ids: Any, **how: Any) -> list[Any]:
        """Return predictions, or the codes of errors."""
        result = self.scorer.predict_entities("m", list(ids), **how)
        assert [item["entity_id"] for item in result["predictions"]] == list(ids)
        return told(result)

    def kept(self, *ids: str) -> list[Any]:
        return [None if entry is None else entry.values.get("y") for entry in self.predictions.read(list(ids))]

    def entry(self, entity_id: str) -> Entry:
        [entry] = self.predictions.read([entity_id])
        assert entry is not None
        return entry


def told(result: Mapping[str, Any]) -> list[Any]:
    return [item["error"]["code"] if "error" in item else item["prediction"] for item in result["predictions"]]


@pytest.fixture
def worker(redis_client: Client) -> Callable[..., Worker]:
    return lambda **how: Worker(redis_client, **how)


def test_each_row_is_answered_or_says_why_and_only_good_ones_are_kept(worker: Callable[..., Worker]) -> None:
    it = worker(keep="1h")
    at = it.load({"a": 3, "raises": -1, "infinite": 1000, "b": 5})
    ids = ["nobody", "b", "raises", 7, "a", "infinite", "", "a"]

    result = it.scorer.predict_entities("m", cast("list[str]", ids))

    assert told(result) == ["unknown-entity", 5, "prediction-failed", "bad-entity-id", 3, "prediction-failed",
                            "bad-entity-id", 3]  # fmt: skip
    assert [item["entity_id"] for item in result["predictions"]] == ids
    assert (result["model"], result["model_version"]) == ("m", 1)
    assert [item["as_of"] for item in result["predictions"] if "as_of" in item] == [at] * 3
    assert result["computed_at"] == pytest.approx(it.predictions.now(), abs=5)
    errors = {item["entity_id"]: item["error"] for item in result["predictions"] if "error" in item}
    assert (errors["nobody"]["field"], "'nobody'" in errors["nobody"]["message"]) == ("entity_id", True)
    assert "send '7'" in errors[7]["message"]
    assert it.kept("a", "b", "raises", "infinite", "nobody") == [3, 5, None, None, None]
    entry = it.entry("b")
    assert (entry.as_of, entry.origin, entry.model_version) == (at, Origin.REALTIME, 1)
    assert entry.computed_at == result["computed_at"]
    [key] = [key for key in it.client.keys("t:p:m:o:*") if key.endswith(b":b")]
    assert 3590 < it.client.ttl(key) <= 3600


def test_before_the_first_run_an_unknown_entity_is_told_so(worker: Callable[..., Worker]) -> None:
    it = worker()

    def words() -> str:
        [item] = it.scorer.predict_entities("m", ["nobody"])["predictions"]
        assert item["error"]["code"] == "unknown-entity"
        return str(item["error"]["message"])

    assert "no run was published yet (`forecache batch run m` scores the table)" in words()
    generations = it.predictions.generations
    manifest = generations.begin(ONE, rows_expected=1, model_version=1, contract_hash="h", keep_s=3600)
    generations.publish(manifest.number)
    assert words().endswith("its features were never loaded")


def test_without_a_model_the_only_one_is_meant_and_another_is_unknown(worker: Callable[..., Worker]) -> None:
    it = worker()
    it.load({"a": 3})
    assert told(it.scorer.predict_entities(None, ["a"])) == [3]
    result = it.scorer.predict_entities("other", ["a", "b"])
    assert told(result) == ["unknown-model"] * 2
    assert (result["model"], result["model_version"]) == ("other", None)


def test_several_outputs_are_an_object_also_when_they_were_kept(worker: Callable[..., Worker]) -> None:
    it = worker(outputs=TWO, min_recompute_interval="1h")
    it.load({"a": 3})
    assert it.predict("a") == it.predict("a", recompute=False) == [{"y": 3.0, "half": 1.5}]
    assert it.host.models[1].calls == [1]


@pytest.mark.parametrize(("overrides", "answer", "kept"), [({"x": 4}, 4, None), (None, 3, 3), ({}, 3, 3)])
def test_what_a_request_replaced_is_answered_and_not_kept(
    worker: Callable[..., Worker], overrides: dict[str, Any] | None, answer: float, kept: float | None
) -> None:
    it = worker()
    it.load({"a": 3})
    assert it.predict("a", overrides=overrides) == [answer]
    assert it.kept("a") == [kept]


def test_overrides_are_computed_though_an_answer_is_recent(worker: Callable[..., Worker]) -> None:
    it = worker(min_recompute_interval="1h")
    it.load({"a": 3})
    assert it.predict("a") == [3]
    assert it.predict("a", overrides={"x": 4}, recompute=False) == [4]
    assert it.predict("a", overrides={"x2": 4}) == ["bad-features"]


def test_what_was_computed_moments_ago_is_answered_again_and_the_rest_computed(worker: Callable[..., Worker]) -> None:
    it = worker(min_recompute_interval="1h")
    at = it.load({"a": 3, "b": 5})
    assert it.predict("a") == [3]
    it.load({"a": 4, "b": 5, "c": 6}, age_s=1)
    result = it.scorer.predict_entities("m", ["b", "a", "c"], recompute=False)
    assert told(result) == [5, 3, 6]
    assert result["predictions"][1]["as_of"] == at
    assert it.host.models[1].calls == [1, 2]
    assert it.predict("a") == [4], "who insists is computed"


@pytest.mark.parametrize(
    ("age_s", "version", "origin", "recent"),
    [
        (9, 1, Origin.REALTIME, True),
        (11, 1, Origin.REALTIME, False),
        (0, 2, Origin.REALTIME, False),
        (0, 1, Origin.UPSERT, False),
        (0, 1, Origin.BATCH, False),
    ],
)
def test_only_a_young_answer_of_this_version_that_was_computed_on_demand_is_recent(
    worker: Callable[..., Worker], age_s: float, version: int, origin: Origin, recent: bool
) -> None:
    it = worker(min_recompute_interval="10s")
    it.load({"a": 3})
    it.predictions.versions.activate(version)
    it.predictions.overlay.upsert(
        ["a"], ONE, {"y": np.float32([99])}, as_of=np.array([1.0]), computed_at=it.predictions.now() - age_s,
        model_version=version, origin=origin, keep_s=60,
    )  # fmt: skip
    assert it.predict("a", recompute=False) == [99 if recent else 3]


def test_an_answer_of_the_very_instant_is_recent() -> None:
    entry = Entry({"y": 1}, 0, 100.0, 3, Origin.REALTIME, None)
    assert [scorer_module._is_recent(entry, 3, since) for since in (99.9, 100.0, 100.1)] == [True, True, False]


# --- deadlines ---


def test_later_than_the_deadline_the_model_is_not_touched(worker: Callable[..., Worker]) -> None:
    it = worker()
    it.load({"a": 3})
    now = it.predictions.now()
    assert it.predict("a", "nobody", deadline=now - 1) == ["deadline-exceeded"] * 2
    assert told(it.scorer.predict_instances("m", [[1]], deadline=now - 1)) == ["deadline-exceeded"]
    assert it.scorer.explain_entity("m", ["a"], deadline=now - 1)["explanation"] is None
    assert it.host.models[1].calls == []
    assert it.predict("a", deadline=now + 60) == [3]
    assert it.predict("a", deadline=int(now) + 60) == [3]


def test_redis_clock_is_asked_for_now_and_then_and_half_the_way_counts(
    worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    it, asked = worker(), []
    steady = [100.0]

    def now() -> float:
        asked.append(steady[0])
        steady[0] += 2.0  # the round trip
        return 5000.0

    monkeypatch.setattr(it.predictions, "now", now)
    monkeypatch.setattr(scorer_module.time, "monotonic", lambda: steady[0])
    assert it.scorer.in_time("m", None) == 5001.0
    steady[0] += 0.5
    assert it.scorer.in_time("m", 5001.5) == 5001.5, "the instant itself is in time"
    with pytest.raises(scorer_module.DeadlineExceeded, match=r"0\.500 s after"):
        it.scorer.in_time("m", 5001.0)
    steady[0] = 102.0 + CLOCK_MAX_AGE_S
    assert it.scorer.in_time("m", None) == 5001.0 + CLOCK_MAX_AGE_S
    assert asked == [100.0]
    steady[0] += 0.001
    assert it.scorer.in_time("m", None) == 5001.0
    assert len(asked) == 2


# --- defaults, fallbacks and outages ---


@pytest.mark.parametrize(
    ("default", "unknown_entity", "answer"),
    [(None, "error", "unknown-entity"), (2.0, "error", "unknown-entity"), (2.0, "defaults", 2),
     (None, "defaults", "unknown-entity")],
)  # fmt: skip
def test_who_is_unknown_may_be_computed_from_defaults(
    worker: Callable[..., Worker], default: float | None, unknown_entity: str, answer: Any
) -> None:
    it = worker(default=default, unknown_entity=unknown_entity)
    it.load({"a": 3})
    assert it.predict("nobody", "a", "x") == [answer, 3, answer]
    assert it.kept("nobody", "a") == [2 if answer == 2 else None, 3]


def test_a_default_that_stands_for_a_missing_value_is_told_of_its_own_row(worker: Callable[..., Worker]) -> None:
    it = worker(default=2.0, unknown_entity="defaults")
    it.load({"a": 3, "b": 5})
    items = it.scorer.predict_entities("m", ["a", "nobody", "b"])["predictions"]
    assert [item.get("imputed_features") or None for item in items] == [None, ["x"], None]


def test_a_fallback_is_asked_for_what_the_table_lacks_and_its_answer_is_kept(worker: Callable[..., Worker]) -> None:
    fallback = Knows(b=5)
    it = worker(fallback=fallback)
    it.load({"a": 3})
    assert it.predict("a", "b", "nobody") == [3, 5, "unknown-entity"]
    assert fallback.asked == [["b", "nobody"]]
    assert it.kept("a", "b", "nobody") == [3, 5, None]


@pytest.mark.parametrize("unknown_entity", ["error", "defaults"])
def test_an_outage_of_a_fallback_is_no_miss_and_what_was_made_up_in_it_is_not_kept(
    worker: Callable[..., Worker], unknown_entity: str
) -> None:
    default = 2.0 if unknown_entity == "defaults" else None
    it = worker(fallback=Knows("the database did not answer", b=5), unknown_entity=unknown_entity, default=default)
    it.load({"a": 3})
    result = it.scorer.predict_entities("m", ["a", "who", "b"])
    assert told(result) == [3, 2 if default else "features-unavailable", 5]
    if not default:
        assert "'who'" in result["predictions"][1]["error"]["message"]
    assert it.kept("a", "who", "b") == [3, None, 5]


def test_a_model_that_is_not_there_fails_every_row_and_so_does_a_table(
    worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = worker()
    it.load({"a": 3})
    it.host.error = ModelUnavailable("none could be loaded")
    assert it.predict("a", "b") == ["model-unavailable"] * 2
    it.host.error = None

    def gone(*_: Any) -> Any:
        raise StoreUnavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(it.features, "read_block", gone)
        assert it.predict("a", "b") == ["store-unavailable"] * 2


def test_an_answer_that_cannot_be_kept_is_right_all_the_same(
    worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = worker()
    it.load({"a": 3})

    def full(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("out of memory")

    monkeypatch.setattr(it.predictions.overlay, "upsert", full)
    assert it.predict("a") == [3]


# --- the canary ---


def test_the_canary_computes_its_own_entities_and_each_answer_says_who(worker: Callable[..., Worker]) -> None:
    it = worker(min_recompute_interval="1h")
    it.host.labels = Labels({"canary": 2}, 0.5)
    ids = [f"e{n}" for n in range(20)]
    it.load(dict.fromkeys(ids, 1))
    canarys = [one for one in ids if it.host.labels.canary_for("m", one)]
    assert 0 < len(canarys) < 20
    result = it.scorer.predict_entities("m", ids)
    assert told(result) == [2 if one in canarys else 1 for one in ids]
    assert result["model_version"] == 1
    assert {item["entity_id"] for item in result["predictions"] if item.get("model_version") == 2} == set(canarys)
    assert all("model_version" not in item for item in result["predictions"] if item["entity_id"] not in canarys)
    it.predictions.versions.label("canary", 2, share=0.5)
    assert {it.entry(one).model_version for one in canarys} == {2}
    assert it.predict(*ids, recompute=False) == told(result)
    assert [sum(model.calls) for model in it.host.models.values()] == [20 - len(canarys), len(canarys)]


# --- instances, explanations, messages ---


def test_rows_that_a_request_brings_are_computed_and_not_kept(worker: Callable[..., Worker]) -> None:
    it = worker()
    now = it.predictions.now()
    result = it.scorer.predict_instances("m", [[1], {"x": 2}, {"z": 3}, {"x": -1}, {"x": 5}])
    assert told(result) == [1, 2, "bad-features", "prediction-failed", 5]
    assert {item["entity_id"] for item in result["predictions"]} == {None}
    assert [item["as_of"] for item in result["predictions"] if "as_of" in item] == [result["computed_at"]] * 3
    assert result["computed_at"] == pytest.approx(now, abs=5)
    assert (result["model"], result["model_version"]) == ("m", 1)
    assert it.client.keys("t:p:m:o:*") == []
    assert told(it.scorer.predict_instances("other", [[1], [2]])) == ["unknown-model"] * 2


def test_an_error_names_its_feature_once(worker: Callable[..., Worker]) -> None:
    missing, text = worker().scorer.predict_instances("m", [{}, {"x": "one"}])["predictions"]
    assert missing["error"]["message"] == "feature 'x': missing, and the feature has no default"
    assert text["error"]["message"] == "feature 'x' is float32: give a number"


def test_an_entity_is_explained_with_and_without_its_prediction(worker: Callable[..., Worker]) -> None:
    it = worker()
    at = it.load({"a": 3, "raises": -1})
    alone = it.scorer.explain_entity("m", ["a"], predict=False)
    assert (alone["model"], alone["error"], set(alone)) == ("m", None, {"model", "explanation", "error"})
    assert (alone["explanation"]["features"]["x"]["value"], alone["explanation"]["features"]["x"]["source"]) == (
        3, "table",
    )  # fmt: skip
    assert it.kept("a") == [None]
    whole = it.scorer.explain_entity("m", ["a"])
    assert (told(whole), whole["predictions"][0]["as_of"], whole["model_version"]) == ([3], at, 1)
    assert whole["explanation"]["vector_hash"] == alone["explanation"]["vector_hash"] is not None
    assert it.kept("a") == [3]
    fails = it.scorer.explain_entity("m", ["raises"])
    assert (told(fails), fails["explanation"]["known"]) == (["prediction-failed"], True)
    assert it.scorer.explain_entity("m", ["raises"], predict=False)["error"] is None


def test_an_explanation_of_nobody_says_so_and_an_illegal_id_has_none(worker: Callable[..., Worker]) -> None:
    it = worker()
    it.load({"a": 3})
    told_nothing = it.scorer.explain_entity("m", ["nobody"], predict=False)
    assert (told_nothing["error"]["code"], told_nothing["explanation"]["known"]) == ("unknown-entity", False)
    assert told(it.scorer.explain_entity("m", ["nobody"])) == ["unknown-entity"]
    illegal = it.scorer.explain_entity("m", ["\x07"], predict=False)
    assert (illegal["error"]["code"], illegal["explanation"]) == ("bad-entity-id", None)


def test_an_explanation_from_an_outage_is_not_kept(worker: Callable[..., Worker]) -> None:
    it = worker(fallback=Knows("gone"), default=2.0, unknown_entity="defaults")
    assert told(it.scorer.explain_entity("m", ["who"])) == [2]
    assert it.kept("who") == [None]


def test_a_canarys_entity_is_explained_by_the_canary(worker: Callable[..., Worker]) -> None:
    it = worker()
    it.load({"a": 3})
    it.host.labels = Labels({"canary": 2}, 1.0)
    result = it.scorer.explain_entity("m", ["a"])
    assert (told(result), result["model_version"]) == ([6], 2)


@pytest.mark.parametrize(
    ("message", "field", "words"),
    [
        ({"entity_ids": "a"}, "entity_ids", "must be a list, not text"),
        ({"entity_ids": None}, "entity_ids", "must be a list, not null"),
        ({"entity_ids": []}, "entity_ids", "holds 0: send 1 to 4096"),
        ({"entity_ids": ["a"] * (MAX_MESSAGE_ROWS + 1)}, "entity_ids", "holds 4097"),
        ({"model": 7}, "model", "must be text, not a number"),
        ({"deadline": "soon"}, "deadline", "must be epoch seconds, not text"),
        ({"deadline": True}, "deadline", "not a boolean"),
        ({"overrides": [1]}, "overrides", "must be an object of features, not a list"),
        ({"recompute": 1}, "recompute", "must be true or false, not a number"),
        ({"recompute": None}, "recompute", "not null"),
    ],
)
def test_a_message_that_cannot_be_answered_row_by_row_is_refused(
    worker: Callable[..., Worker], message: dict[str, Any], field: str, words: str
) -> None:
    whole: dict[str, Any] = {"model": "m", "entity_ids": ["a"], **message}
    with pytest.raises(BadInput, match=words) as refused:
        worker().scorer.predict_entities(**whole)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("call", "field"),
    [("predict_entities", "entity_ids"), ("explain_entity", "entity_ids"), ("predict_instances", "instances")],
)
def test_each_message_is_checked_by_its_own_argument(worker: Callable[..., Worker], call: str, field: str) -> None:
    for message, named in (([], field), (["a"], "model"), (["a"], "deadline")):
        how: dict[str, Any] = {"model": 7 if named == "model" else "m", field: message}
        with pytest.raises(BadInput) as refused:
            getattr(worker().scorer, call)(**how, **({"deadline": "soon"} if named == "deadline" else {}))
        assert refused.value.field == named


def test_the_largest_message_is_answered(worker: Callable[..., Worker]) -> None:
    result = worker().scorer.predict_instances("m", [[n % 7] for n in range(MAX_MESSAGE_ROWS)])
    assert told(result) == [n % 7 for n in range(MAX_MESSAGE_ROWS)]


# --- the sample for parity ---


def test_an_answer_a_second_is_remembered_with_what_made_it_and_expires(
    worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = worker(parity=True)
    it.load({"raises": -1, "a": 3, "b": 5})
    steady = time.monotonic()
    monkeypatch.setattr("inference.serving.answer_sample.time.monotonic", lambda: steady)
    it.predict("raises", "nobody", "b", "a")
    it.predict("a")
    assert [(one.entity_id, one.prediction, one.model_version) for one in sampled_answers(it.client, KEYS, "m", 9)] == [
        ("b", 5, 1)
    ]
    assert 86_000 < it.client.ttl(KEYS.answers("m")) <= 86_400
    for seconds, entity_id in ((1, "a"), (2, "b"), (2.5, "a"), (3, "a"), (4, "b"), (5, "a")):
        monkeypatch.setattr("inference.serving.answer_sample.time.monotonic", lambda now=steady + seconds: now)
        it.predict(entity_id)
    newest = sampled_answers(it.client, KEYS, "m", 9)
    assert [one.entity_id for one in newest] == ["a", "b", "a", "b"], "twice the sample at most"
    assert newest[0].vector != newest[1].vector
    assert newest[0].vector == newest[2].vector == it.scorer.explain_entity("m", ["a"])["explanation"]["vector_hash"]
    assert [one.entity_id for one in sampled_answers(it.client, KEYS, "m", 2)] == ["a", "b"]


def test_without_parity_nothing_is_remembered(worker: Callable[..., Worker]) -> None:
    it = worker()
    it.load({"a": 3})
    it.predict("a")
    assert not it.client.exists(KEYS.answers("m"))
