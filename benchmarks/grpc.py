"""Requests per second and the API's CPU by gRPC, beside `/v1`, `/v2` and a bare grpc.aio echo of the same messages."""

from __future__ import annotations

import sys

# this file is named as the library: imports look for it elsewhere first
sys.path.append(sys.path.pop(0))

import argparse
import asyncio
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rig.closed_loop import ClosedLoop, Connect, load, over_grpc, over_http
from rig.dataset import FEATURES, Dataset, make_dataset
from rig.grpc_echo import METHOD as ECHO
from rig.report import print_report
from rig.stack import MODEL, ROOT, Stack, free_port, temporary_folder

from inference.protocols.messages import message_class
from inference.protocols.tensor_messages import tensor_of, write_tensor

PREDICT = "/tensorflow.serving.PredictionService/Predict"
WARM_UP_S = 0.5
#: (rows, connections) → way → its load
Loads = dict[tuple[int, int], dict[str, ClosedLoop]]


def main() -> None:
    """Measure each way with each size and print."""
    options = _options()
    with temporary_folder() as folder:
        dataset = make_dataset(folder, max(options.rows))
        with Stack(folder, dataset) as stack:
            grpc_port, echo_port = free_port(), free_port()
            # without this folder, which would hide the library from the API
            stack.variables["PYTHONPATH"] = str(ROOT)
            stack.api_lines = f"[grpc]\nport = {grpc_port}"
            stack.use_cache_port(stack.redis_port)
            stack.start_workers("realtime")
            api = stack.start_api()
            echo = stack.start(
                "echo", sys.executable, str(Path(__file__).parent / "rig" / "grpc_echo.py"), str(echo_port)
            )
            loads = asyncio.run(_measure(stack, (grpc_port, echo_port), {"echo": echo}, api, options))
    table = [
        (
            f"{way}, {rows} rows, {connections} connections",
            one.rps,
            one.rps / by_way["v1"].rps,
            one.p50_ms,
            one.cpu_us,
            f"{one.refused:.0%}",
        )
        for (rows, connections), by_way in loads.items()
        for way, one in by_way.items()
    ]
    title = f"gRPC: rows of {FEATURES} numbers, one API process, one worker, one Python client for all ways"
    headings = ["", "requests/s", "of v1's", "p50 ms", "server's CPU µs", "refused"]
    print_report(title, headings, table, _figures(loads, options), as_json=options.json)


async def _measure(
    stack: Stack, ports: tuple[int, int], others: dict[str, int], api: int, options: argparse.Namespace
) -> Loads:
    """Return the median of each way's loads; the rounds take turns."""
    found: Loads = {}
    for rows in options.rows:
        ways = _ways(stack, ports, rows)
        for connections in options.connections:
            rounds: dict[str, list[ClosedLoop]] = {way: [] for way in ways}
            for number in range(options.rounds + 1):
                for way, connect in ways.items():
                    seconds = options.seconds if number else WARM_UP_S
                    one = await load(connect, connections, seconds, others.get(way, api))
                    if number:
                        rounds[way].append(one)
            found[rows, connections] = {way: _median(several) for way, several in rounds.items()}
    return found


def _median(several: list[ClosedLoop]) -> ClosedLoop:
    columns = [[getattr(one, name) for one in several] for name in ("rps", "p50_ms", "cpu_us", "refused")]
    return ClosedLoop(*map(statistics.median, columns))


def _ways(stack: Stack, ports: tuple[int, int], rows: int) -> dict[str, Connect]:
    instances, answers = _instances(stack.dataset, rows), stack.dataset.answers()[:rows]
    (spec,) = stack.deployment.registry.active(MODEL).signature.inputs
    request = message_class("tensorflow.serving.PredictRequest")()
    request.model_spec.name = MODEL
    tensor = request.inputs[spec.name]
    write_tensor(tensor, instances[:0])
    tensor.tensor_content, tensor.tensor_shape.dim[0].size = instances.tobytes(), rows
    message = request.SerializeToString()
    item = {"name": spec.name, "datatype": "FP32", "shape": [rows, FEATURES]}
    in_json = json.dumps({"inputs": [item | {"data": instances.ravel().tolist()}]}).encode()
    item["parameters"] = {"binary_data_size": instances.nbytes}
    head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    infer, address = f"{stack.url}/v2/models/{MODEL}/infer", "127.0.0.1:{}".format
    once = partial(_once, answers)
    return {
        "v1": over_http(
            f"{stack.url}/v1/models/{MODEL}:predict",
            json.dumps({"instances": instances.tolist()}).encode(),
            {},
            once(lambda body: json.loads(body)["predictions"]),
        ),
        "v2_json": over_http(infer, in_json, {}, once(lambda body: json.loads(body)["outputs"][0]["data"])),
        "v2_binary": over_http(
            infer, head + instances.tobytes(), length, once(lambda body: np.frombuffer(body[-4 * rows :], np.float32))
        ),
        "grpc": over_grpc(address(ports[0]), PREDICT, message, once(_outputs)),
        "echo": over_grpc(address(ports[1]), ECHO, message, lambda _: None),
    }


def _outputs(answer: bytes) -> Any:
    (output,) = message_class("tensorflow.serving.PredictResponse").FromString(answer).outputs.values()
    return tensor_of(output, "")


def _once(answers: np.ndarray, read: Callable[[bytes], Any]) -> Callable[[bytes], None]:
    """Return a check of an answer; later ones need only be as long as the first, give or take a few digits."""
    seen: list[int] = []

    def check(body: bytes) -> None:
        if not seen:
            np.testing.assert_allclose(np.ravel(read(body)), answers, rtol=1e-4, err_msg=repr(body[:200]))
            seen.append(len(body))
        if abs(len(body) - seen[0]) > 8:
            raise RuntimeError(f"another answer: {body[:200]!r}")

    return check


def _instances(dataset: Dataset, rows: int) -> np.ndarray:
    table = pq.read_table(dataset.table).slice(0, rows).drop_columns(["entity_id"])
    return np.ascontiguousarray(np.stack([column.to_numpy() for column in table.columns], axis=1))


def _figures(loads: Loads, options: argparse.Namespace) -> dict[str, Any]:
    most = max(options.connections)
    # one after the other, so that no request is refused, which costs CPU too
    last = loads[options.rows[-1], min(options.connections)]
    return {
        **{
            f"ratio_v1_{rows}": round(loads[rows, most]["grpc"].rps / loads[rows, most]["v1"].rps, 2)
            for rows in options.rows
        },
        "cpu_us": round(last["grpc"].cpu_us, 1),
        "v2_cpu_us": round(last["v2_binary"].cpu_us, 1),
        "echo_cpu_us": round(last["echo"].cpu_us, 1),
        "connections": most,
        "by_load": {
            f"{way}-{rows}-{connections}": {"rps": round(one.rps, 1), "cpu_us": round(one.cpu_us, 1)}
            for (rows, connections), by_way in loads.items()
            for way, one in by_way.items()
        },
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 1000], help="of a request")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--seconds", type=float, default=2, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
