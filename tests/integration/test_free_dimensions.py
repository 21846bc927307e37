"""Models with several free dimensions, texts and scalars, over all four protocols, in requests that meet each other."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import ovmsclient
import pytest

from inference.models import LoadedModel
from inference.models.loading import load_version
from inference.protocols.tensors import objects
from tests.support.models import export_models
from tests.support.ports import free_port
from tests.support.stack import Stack

pytestmark = [pytest.mark.integration, pytest.mark.slow]

#: rows, columns, depth and words of requests that are sent at one time
SHAPES = [(1, 1, 1, 1), (2, 3, 1, 4), (5, 1, 7, 2), (3, 2, 2, 0), (1, 9, 4, 3)] * 6


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("free")
    names = ("lengths", "scalars")
    export_models({folder / name / "1": name for name in names})
    toml = f"[grpc]\nport = {free_port()}\n" + "".join(
        f'[models.{name}]\npath = "{name}"\nrealtime = {{ timeout_ms = 20000, max_micro_batch = 2 }}\n'
        for name in names
    )
    with Stack(folder, toml) as running:
        running.start("realtime", "api")
        running.wait_ready()
        yield running


def tensors(number: int) -> dict[str, np.ndarray]:
    rows, columns, depth, words = SHAPES[number]
    grid = np.random.default_rng(number).normal(size=(rows, columns, depth)).astype(np.float32)
    texts = [f"ü{number}-{row}-{word}" for row in range(rows) for word in range(words)]
    return {"grid": grid, "words": objects(texts).reshape(rows, words)}


def check(number: int, outputs: dict[str, Any]) -> None:
    given = tensors(number)
    np.testing.assert_allclose(np.asarray(outputs["doubled"], np.float32), 2 * given["grid"], rtol=1e-6)
    assert [str(one) for one in outputs["joined"]] == [" ".join(row) for row in given["words"].tolist()]
    assert np.asarray(outputs["upper"], object).reshape(given["words"].shape).tolist() == [
        [word.upper() if word.isascii() else word for word in row] for row in given["words"].tolist()
    ]


def by_v1(stack: Stack, number: int) -> None:
    given = {name: values.tolist() for name, values in tensors(number).items()}
    answer = httpx.post(f"{stack.url}/v1/models/lengths:predict", json={"inputs": given}, timeout=60)
    check(number, answer.raise_for_status().json()["outputs"])


def by_v1_rows(stack: Stack, number: int) -> None:
    given = tensors(number)
    rows = [{name: values[row].tolist() for name, values in given.items()} for row in range(len(given["grid"]))]
    answer = httpx.post(f"{stack.url}/v1/models/lengths:predict", json={"instances": rows}, timeout=60)
    predictions = answer.raise_for_status().json()["predictions"]
    check(number, {name: [row[name] for row in predictions] for name in predictions[0]})


def by_v2(stack: Stack, number: int) -> None:
    inputs = [
        {
            "name": name,
            "shape": list(values.shape),
            "datatype": "FP32" if name == "grid" else "BYTES",
            "data": values.ravel().tolist(),
        }
        for name, values in tensors(number).items()
    ]
    answer = httpx.post(f"{stack.url}/v2/models/lengths/infer", json={"inputs": inputs}, timeout=60)
    outputs = answer.raise_for_status().json()["outputs"]
    check(number, {one["name"]: np.array(one["data"], object).reshape(one["shape"]).tolist() for one in outputs})


@pytest.fixture(scope="module")
def engines(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    """The same model, asked as a remote engine over each protocol of gRPC."""
    found = {}
    for protocol in ("tensorflow-serving-grpc", "open-inference-grpc"):
        folder = tmp_path_factory.mktemp("remote")
        url = f"grpc://127.0.0.1:{stack.settings.grpc.port}"
        (folder / "remote.toml").write_text(
            f'protocol = "{protocol}"\nurl = "{url}"\nname = "lengths"\ntimeout = "60s"\n'
        )
        found[protocol] = load_version("lengths", folder, 1, folder)
    return found


def test_requests_of_different_lengths_never_meet(stack: Stack, engines: dict[str, LoadedModel]) -> None:
    def ask(number: int) -> None:
        for way in (by_v1, by_v1_rows, by_v2):
            if SHAPES[number][3] or way is not by_v1_rows:
                way(stack, number)
        for loaded in engines.values():
            check(number, loaded.predict(tensors(number)))

    with ThreadPoolExecutor(6) as threads:
        for _ in threads.map(ask, range(len(SHAPES))):
            pass


def test_free_dimensions_are_described_as_free(engines: dict[str, LoadedModel]) -> None:
    for loaded in engines.values():
        signature = loaded.runtime.signature
        assert {one.name: one.shape for one in signature.inputs} == {"grid": (-1, -1), "words": (-1,)}
        assert {one.name: one.shape for one in signature.outputs} == {"doubled": (-1, -1), "joined": (), "upper": (-1,)}


def test_scalars_are_computed_by_v1_and_tensorflow_servings_grpc_and_no_remote_model(
    stack: Stack, tmp_path: Path
) -> None:
    answer = httpx.post(f"{stack.url}/v1/models/scalars:predict", json={"inputs": {"a": 3.0, "word": "ab"}}, timeout=60)
    assert answer.json() == {"outputs": {"half": 1.5, "twice": "abab"}}
    address = f"127.0.0.1:{stack.settings.grpc.port}"
    outputs = ovmsclient.make_grpc_client(address).predict({"a": np.float32(3), "word": "ab"}, "scalars", timeout=60)
    assert (outputs["half"].item(), outputs["twice"].item()) == (1.5, b"abab")
    refused = httpx.get(f"{stack.url}/v2/models/scalars")
    assert refused.status_code == 400, refused.text
    url = f'protocol = "tensorflow-serving-grpc"\nurl = "grpc://{address}"\nname = "scalars"\n'
    (tmp_path / "remote.toml").write_text(url)
    with pytest.raises(Exception, match="scalars: input 'a' is a scalar without a row dimension"):
        load_version("scalars", tmp_path, 1, tmp_path)
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as told:
        channel.unary_unary("/inference.GRPCInferenceService/ModelMetadata")(b"\x0a\x07scalars", timeout=60)
    assert told.value.code() is grpc.StatusCode.INVALID_ARGUMENT
