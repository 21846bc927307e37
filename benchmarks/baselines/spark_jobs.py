"""Spark jobs that score a table and write Parquet, as one would write them without Forecache.

`spark_jobs.py KIND MODEL_FILE PARQUET ROWS OUTPUT MASTER` prints {"rows", "seconds"}; Spark's start is timed.

- `usual`: the brief's job, a `pandas_udf` over the feature columns that loads the model in each call
- `predict_batch_udf`: Spark's own, whose model stays loaded in a Python worker
- `map_in_arrow`: `mapInArrow`, with the model kept by the module
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import array, pandas_udf

MICRO_BATCH_ROWS = 8192


def load(model_file: str) -> Any:
    """Return the Keras model."""
    import tensorflow as tf

    return tf.keras.models.load_model(model_file)


loaded = cache(load)


def usual(table: DataFrame, model_file: str, columns: list[str]) -> DataFrame:
    """Score by a `pandas_udf`."""

    @pandas_udf("double")
    def predict(*features: pd.Series) -> pd.Series:
        model = load(model_file)
        answers = model.predict(pd.concat(features, axis=1).to_numpy(np.float32), verbose=0)
        return pd.Series(answers[:, 0].astype(float))

    return table.select("entity_id", predict(*columns).alias("prediction"))


def by_predict_batch_udf(table: DataFrame, model_file: str, columns: list[str]) -> DataFrame:
    """Score by Spark's own function for it."""

    def make() -> Callable[[np.ndarray], np.ndarray]:
        model = load(model_file)
        return lambda inputs: np.asarray(model(inputs.astype(np.float32)))[:, 0]

    predict = predict_batch_udf(
        make, return_type="float", batch_size=MICRO_BATCH_ROWS, input_tensor_shapes=[[len(columns)]]
    )
    return table.select("entity_id", predict(array(*columns)).alias("prediction"))


def by_map_in_arrow(table: DataFrame, model_file: str, columns: list[str]) -> DataFrame:
    """Score by `mapInArrow`."""
    return table.mapInArrow(partial(_score, model_file, columns), "entity_id string, prediction float")


def _score(model_file: str, columns: list[str], batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    model = loaded(model_file)
    for batch in batches:
        inputs = np.column_stack([batch.column(name).to_numpy() for name in columns])
        answers = np.asarray(model(inputs))[:, 0]
        yield pa.record_batch({"entity_id": batch.column("entity_id"), "prediction": pa.array(answers, pa.float32())})


KINDS = {"usual": usual, "predict_batch_udf": by_predict_batch_udf, "map_in_arrow": by_map_in_arrow}


def main() -> None:
    """Run one job."""
    kind, model_file, source, rows, output, master = sys.argv[1:]
    started = time.perf_counter()
    spark = SparkSession.builder.master(master).config("spark.ui.enabled", "false").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    table = spark.read.parquet(source).limit(int(rows)).repartition(spark.sparkContext.defaultParallelism)
    columns = [name for name in table.columns if name != "entity_id"]
    KINDS[kind](table, model_file, columns).write.parquet(output, mode="overwrite")
    seconds = time.perf_counter() - started
    written = spark.read.parquet(output).count()
    spark.stop()
    print(json.dumps({"rows": written, "seconds": seconds}))


if __name__ == "__main__":
    # Spark sends functions of a module that executors can import by name; those of the file that runs, by value
    from baselines.spark_jobs import main as of_module

    of_module()
