"""Requests per second by `/v1` and `/v2`, against `POST /predict` with the same instances."""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rig.dataset import FEATURES, Dataset, make_dataset
from rig.report import print_report
from rig.stack import MODEL, Stack, temporary_folder
from rig.wrk import Load, Posted, median_load, post, write_answers

WARM_UP_S = 1

#: by rows of a request: each way's load
Loads = dict[int, dict[str, Load]]


def main() -> None:
    """Measure each way with each number of rows and print."""
    options = _options()
    with temporary_folder() as folder:
        dataset = make_dataset(folder, max(options.rows))
        with Stack(folder, dataset) as stack:
            stack.start_workers("realtime")
            stack.start_api()
            loads = {rows: measure(targets(stack, rows), options) for rows in options.rows}
    table = [
        (
            f"{name}, {rows} rows",
            one.rps,
            one.rps / by_way["predict"].rps,
            one.rps * rows,
            one.p50_ms,
            one.p99_ms,
            f"{one.client_core:.0%} of a core",
        )
        for rows, by_way in loads.items()
        for name, one in by_way.items()
    ]
    title = f"Serving protocols: rows of {FEATURES} numbers, {options.connections} connections, one worker"
    headings = ["", "requests/s", "of predict's", "rows/s", "p50 ms", "p99 ms", "client"]
    print_report(title, headings, table, _figures(loads, options), as_json=options.json)


def targets(stack: Stack, rows: int) -> list[Posted]:
    """Write the bodies that ask for the table's first rows in each way."""
    dataset, folder = stack.dataset, stack.folder
    instances = _instances(dataset, rows)
    answers = write_answers(folder / f"answers-{rows}.txt", dataset.answers()[:rows])
    plain = {"instances": instances.tolist()}
    head = _infer_head(stack, rows, instances.nbytes)

    def target(way: str, path: str, body: bytes, pattern: str, json_length: int | None = None) -> Posted:
        file = folder / f"{way}-{rows}.body"
        file.write_bytes(body)
        return Posted(way, stack.url + path, file, answers, pattern, json_length)

    nested = head["inputs"][0] | {"data": instances.ravel().tolist(), "parameters": {}}
    in_json = json.dumps({"inputs": [nested]}).encode()
    in_bytes = json.dumps(head).encode()
    return [
        target("predict", "/predict", json.dumps(plain).encode(), '"prediction":%s*([-+%deE.]+)'),
        target("v1", f"/v1/models/{MODEL}:predict", json.dumps(plain).encode(), "%[([-+%deE.]+)%]"),
        target("v2_json", f"/v2/models/{MODEL}/infer", in_json, "[[,]([-+]?%d+%.%d*[eE]?[-+]?%d*)"),
        target("v2_binary", f"/v2/models/{MODEL}/infer", in_bytes + instances.tobytes(), "", len(in_bytes)),
    ]


def measure(ways: list[Posted], options: argparse.Namespace) -> dict[str, Load]:
    """Return each way's median; the rounds take turns."""
    for target in ways:
        post(target, connections=options.connections, seconds=WARM_UP_S)
    rounds: dict[str, list[Load]] = {target.name: [] for target in ways}
    for _ in range(options.rounds):
        for target in ways:
            rounds[target.name].append(post(target, connections=options.connections, seconds=options.seconds))
    return {name: median_load(several) for name, several in rounds.items()}


def _instances(dataset: Dataset, rows: int) -> np.ndarray:
    table = pq.read_table(dataset.table).slice(0, rows).drop_columns(["entity_id"])
    return np.ascontiguousarray(np.stack([column.to_numpy() for column in table.columns], axis=1))


def _infer_head(stack: Stack, rows: int, size: int) -> dict[str, Any]:
    """Return the JSON part of a binary infer request."""
    (spec,) = stack.deployment.registry.active(MODEL).signature.inputs
    item = {
        "name": spec.name,
        "datatype": "FP32",
        "shape": [rows, FEATURES],
        "parameters": {"binary_data_size": size},
    }
    return {"inputs": [item], "parameters": {"binary_data_output": True}}


def _figures(loads: Loads, options: argparse.Namespace) -> dict[str, Any]:
    every = [(f"{name}-{rows}", one) for rows, by_way in loads.items() for name, one in by_way.items()]
    headline = loads[options.rows[-1]]
    ratios = {
        f"ratio_{name}_to_predict": round(one.rps / headline["predict"].rps, 2)
        for name, one in headline.items()
        if name != "predict"
    }
    return {
        "rows": options.rows[-1],
        "connections": options.connections,
        "predict_rps": round(headline["predict"].rps, 1),
        "v1_rps": round(headline["v1"].rps, 1),
        **ratios,
        "by_rows": {
            name: {"rps": round(one.rps, 1), "p50_ms": round(one.p50_ms, 2), "p99_ms": round(one.p99_ms, 2)}
            for name, one in every
        },
        "client_bound": [name for name, one in every if one.client_bound],
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1, 64, 1000], help="of a request; the last is the headline"
    )
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
