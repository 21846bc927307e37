"""Spark jobs of the usual kind over the same table and model, by one of three ways into Python.

`spark_jobs.py WAY KERAS_MODEL PARQUET OUTPUT` prints {"rows", "seconds", "seconds_after_start"}: from Spark's own
Parquet reader to Parquet written, on `local[*]`; the start of Spark is in `seconds` only. WAY is `pandas_udf` (the
brief's job: each batch loads the model anew), `map_in_arrow` or `predict_batch_udf` (both load it once in each Python
worker).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import pandas_udf, struct

from baselines.spark_model import load, load_once


def by_pandas_udf(frame: DataFrame, features: list[str], path: str) -> DataFrame:
    """The brief's way."""

    def predict(*columns: pd.Series) -> pd.Series:
        x = pd.concat(columns, axis=1).to_numpy(np.float32)
        return pd.Series(load(path)(x).numpy().ravel().astype(np.float64))

    # PySpark asks for annotations or a type; a function of any number of columns has only the latter
    predict.__annotations__ = {"columns": pd.Series, "return": pd.Series}
    return frame.select("entity_id", pandas_udf(predict, "double")(*features).alias("prediction"))


def by_map_in_arrow(frame: DataFrame, features: list[str], path: str) -> DataFrame:
    """Arrow batches as Spark hands them over, columns by name."""

    def predict(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        model = load_once(path)
        for batch in batches:
            x = np.column_stack([batch.column(name).to_numpy() for name in features])
            answers = model(x).numpy().ravel().astype(np.float64)
            yield pa.record_batch({"entity_id": batch.column("entity_id"), "prediction": answers})

    return frame.mapInArrow(predict, "entity_id string, prediction double")


def by_predict_batch_udf(frame: DataFrame, features: list[str], path: str) -> DataFrame:
    """Spark's own wrapper for models."""
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql.functions import array
    from pyspark.sql.types import DoubleType

    def make() -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
        model = load_once(path)
        return lambda x: model(x).numpy().ravel().astype(np.float64)

    predict = predict_batch_udf(
        make, return_type=DoubleType(), batch_size=10_000, input_tensor_shapes=[[len(features)]]
    )
    return frame.select("entity_id", predict(struct(array(*features).alias("x"))["x"]).alias("prediction"))


WAYS = {"pandas_udf": by_pandas_udf, "map_in_arrow": by_map_in_arrow, "predict_batch_udf": by_predict_batch_udf}


def main(way: str, model: str, table: str, output: str) -> None:
    """Run one job and print how long it took."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    started = time.monotonic()
    builder = SparkSession.builder.master("local[*]").config("spark.ui.enabled", "false")
    session = builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
    ready = time.monotonic()
    frame = session.read.parquet(table)
    features = [name for name in frame.columns if name != "entity_id"]
    WAYS[way](frame, features, model).write.parquet(output, mode="overwrite")
    ended = time.monotonic()
    rows = session.read.parquet(output).where("prediction is not null").count()
    session.stop()
    print(json.dumps({"rows": rows, "seconds": ended - started, "seconds_after_start": ended - ready}))


if __name__ == "__main__":
    main(*sys.argv[1:])
