"""SavedModels with several signatures: the one that fits the table is found, or chosen by a setting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from inference.errors import ModelError
from inference.features import FeatureContract
from inference.models import VersionRecord
from inference.models.runtimes import SavedSignature
from inference.onboarding.key_columns import Guess
from inference.onboarding.matching import UserTable, choose_signature, needs_choice
from inference.onboarding.proposal import Proposal, ages_for, render_settings
from inference.schema import DType, GraphSignature, Signature, TensorSpec
from inference.settings import load_settings

COLUMNS = Signature((TensorSpec("a", DType.FLOAT32), TensorSpec("b", DType.FLOAT32)), (TensorSpec("y", DType.FLOAT32),))
OTHERS = Signature((TensorSpec("c", DType.FLOAT32), TensorSpec("d", DType.FLOAT32)), (TensorSpec("y", DType.FLOAT32),))
TEXT = Signature((TensorSpec("examples", DType.STRING),), (TensorSpec("y", DType.FLOAT32),))
TABLE = UserTable("t.parquet", pa.schema({"id": pa.string(), "a": pa.float64(), "b": pa.float64()}), ["id"])
WITH_TEXT = UserTable("t.parquet", TABLE.schema.append(pa.field("name", pa.string())), ["id"])


def found(**signatures: Signature) -> dict[str, SavedSignature]:
    return {name: SavedSignature(one, reads_examples=one is TEXT) for name, one in signatures.items()}


@pytest.mark.parametrize("table", [TABLE, WITH_TEXT])
@pytest.mark.parametrize(
    ("signatures", "chosen"),
    [
        (found(serving_default=TEXT, serving_raw=COLUMNS), "serving_raw"),
        (found(predict=TEXT, serving_raw=COLUMNS), "serving_raw"),
        (found(transform_features=OTHERS, tft_layer=TEXT, serving_raw=COLUMNS), "serving_raw"),
        (found(serving_default=OTHERS, by_column=COLUMNS), "by_column"),
        (found(serving_default=COLUMNS, other=COLUMNS), None),
        (found(serving_default=OTHERS, other=OTHERS), None),
        (found(serving_default=COLUMNS), None),
        (found(only=COLUMNS), None),
    ],
)
def test_the_only_signature_that_fits_the_table_is_chosen(
    signatures: dict[str, SavedSignature], chosen: str | None, table: UserTable
) -> None:
    choice = choose_signature(signatures, table)
    assert (choice and choice[0]) == chosen


@pytest.mark.parametrize(
    ("signatures", "words"),
    [
        (found(serving_default=TEXT), "takes serialized tf.Examples, not columns of a table"),
        (
            found(serving_default=TEXT, other=OTHERS),
            r"none of its signatures \(other, serving_default\) fits t\.parquet",
        ),
        (found(one=COLUMNS, other=COLUMNS), "one and other fit t.parquet both: say which by --signature"),
        (found(one=OTHERS, other=OTHERS), r"no signature 'serving_default'.*\(one, other\) none fits"),
    ],
)
def test_what_cannot_be_chosen_is_said_in_one_line(signatures: dict[str, SavedSignature], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        choose_signature(signatures, WITH_TEXT)


def test_a_look_at_all_signatures_is_taken_only_when_the_default_may_not_do() -> None:
    assert not needs_choice(COLUMNS, TABLE)
    assert needs_choice(None, TABLE)
    assert needs_choice(TEXT, WITH_TEXT)
    assert needs_choice(OTHERS, TABLE)


def test_the_choice_is_written_and_read_back(tmp_path: Path) -> None:
    file = tmp_path / "forecache.toml"
    proposal = Proposal(
        model="tfx",
        path="models/tfx",
        features="t.parquet",
        entity_column=Guess("id", "text"),
        event_time_column=Guess(None, "none"),
        matched="2 inputs",
        schedule="0 3 * * *",
        ages=ages_for("0 3 * * *", 0.0),
        signature="serving_raw",
    )
    file.write_text(render_settings(proposal))
    assert load_settings(file).models["tfx"].signature == "serving_raw"


GRAPHS = {name: GraphSignature.of_rows(one) for name, one in (("serving_default", TEXT), ("raw", COLUMNS))}


def record(**more: Any) -> VersionRecord:
    return VersionRecord(
        version=1, state="ready", signature=COLUMNS, contract=FeatureContract(()), fingerprint="", inspected_at=0.0,
        **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("known", "name", "called"),
    [
        (record(signatures=GRAPHS, own_signature="raw"), "serving_default", "serving_default"),
        (record(signatures=GRAPHS, own_signature="raw"), "raw", "raw"),
        (record(signatures={"raw": GRAPHS["raw"]}, own_signature="raw"), "serving_default", "raw"),
        (record(), "serving_default", None),
        (record(), "raw", None),
    ],
)
def test_a_client_calls_each_signature_by_its_name(known: VersionRecord, name: str, called: str | None) -> None:
    read = VersionRecord.from_json(json.dumps(known.to_json()))
    assert read == known
    call = read.signature_call(name, chosen="raw")
    assert call is not None
    assert call.name == called
    assert call.declared == (GRAPHS[called] if called else GRAPHS["raw"])
    assert read.signature_call("other", chosen="raw") is None


def test_the_record_of_an_older_release_has_one_signature() -> None:
    written = {name: value for name, value in record().to_json().items() if "signatures" not in name}
    del written["own_signature"]
    read = VersionRecord.from_json(json.dumps(written))
    assert read.all_signatures() == {"serving_default": GRAPHS["raw"]}


EXPORT = """
import sys
import tensorflow as tf

class M(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def of_examples(self, examples):
        read = tf.io.parse_example(examples, {name: tf.io.FixedLenFeature([], tf.float32) for name in "ab"})
        return {"y": read["a"] + read["b"]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name=name) for name in "ab"])
    def of_columns(self, a, b):
        return {"y": a + 2 * b}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="word")])
    def of_words(self, word):
        return {"y": tf.cast(tf.strings.length(word), tf.float32)}

m = M()
tf.saved_model.save(m, sys.argv[1], signatures={"predict": m.of_examples, "raw": m.of_columns, "words": m.of_words})
"""

LOOK = """
import sys
from pathlib import Path

import numpy as np

from inference.errors import ModelError
from inference.models.loading import load_version
from inference.models.runtimes import LoadOptions, signatures_of

folder = Path(sys.argv[1])
print({name: one.reads_examples for name, one in signatures_of(folder).items()})
for name in (None, "raw", "rwa"):
    try:
        loaded = load_version("m", folder, 1, folder, options=LoadOptions(signature=name))
        print(loaded.predict({"a": np.float32([1, 2]), "b": np.float32([3, 4])})["y"].tolist())
    except ModelError as error:
        print(error.message)
"""


@pytest.mark.slow
def test_a_saved_model_tells_which_signatures_read_examples_and_serves_the_chosen_one(tmp_path: Path) -> None:
    def run(code: str) -> list[str]:
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "m")], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if "model.loaded" not in line]

    run(EXPORT)
    reads, without, chosen, misspelt = run(LOOK)
    assert reads == str({"predict": True, "raw": False, "words": False})
    assert "(found: predict, raw, words): choose one by signature = " in without
    assert chosen == str(np.array([7.0, 10.0]).tolist())
    assert "has no signature 'rwa' (found: predict, raw, words): correct \"signature\" under [models.NAME]" in misspelt
