"""Triton's extensions of the Open Inference Protocol: statistics, model configuration, index of the model repository.

Both doors, `/v2/…` and gRPC, answer with these bodies. `docs/protocols.md` names the extensions that are missing.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from app.api.open_inference import (
    VERSIONED,
    VersionInPath,
    described_model,
    inferable_record,
    json_response,
    platform_of,
    ready_versions,
    unknown_model,
)
from app.api.problems import documented_errors
from app.api.process import ApiProcess, Process
from app.api.request_bodies import operation_id, read_body
from app.api.servables import version_states
from inference.errors import BadInput, NotFound, Unsupported, cut
from inference.models.class_labels import LABELS_FILE
from inference.monitoring.counters import TensorRequests
from inference.protocols.json_documents import parse
from inference.protocols.model_config import model_config
from inference.protocols.tensorflow_serving import Method, ModelUrl


async def configuration(process: ApiProcess, model: str, version: int | None) -> dict[str, Any]:
    """Return the configuration of a model, as one version has it; None: the active one.

    Raises:
        NotFound, BadInput: as `inferable_record` says.
    """
    record = await inferable_record(process, model, version)
    return model_config(
        model,
        platform_of(record),
        await ready_versions(process, model),
        record.signature,
        micro_batch=process.settings.models[model].realtime.max_micro_batch,
        label_file=LABELS_FILE if record.class_labels else "",
    )


async def statistics(process: ApiProcess, model: str | None, version: int | None) -> dict[str, Any]:
    """Return how many requests for tensors each version got, ever, from all API processes; at most some seconds old.

    `model` None: all models. `version` None: every version that may answer.

    Raises:
        NotFound: there is no such model or version.
    """
    models = list(process.settings.models) if model is None else [model]
    found = await asyncio.gather(*(_of_model(process, each, version) for each in models))
    return {"model_stats": [one for each in found for one in each]}


async def _of_model(process: ApiProcess, model: str, version: int | None) -> list[dict[str, Any]]:
    versions = await ready_versions(process, model)
    if version is not None and version not in versions:
        raise unknown_model(model, version)
    counted = TensorRequests.of(await process.in_thread(lambda: process.deployment.hits.totals(model)))
    active = (await process.cards.of(model)).active
    # requests for the active version do not say which one that was when they failed
    unnamed = counted.get(0, TensorRequests())
    return [
        _statistics(model, each, counted.get(each, TensorRequests()), unnamed if each == active else TensorRequests())
        for each in versions
        if version in (None, each)
    ]


def _statistics(model: str, version: int, counted: TensorRequests, unnamed: TensorRequests) -> dict[str, Any]:
    nothing = {"count": 0, "ns": 0}
    success = {"count": counted.requests, "ns": counted.us * 1000}
    fail = {"count": counted.failed + unnamed.failed, "ns": (counted.failed_us + unnamed.failed_us) * 1000}
    parts = {
        "queue": counted.queue_us,
        "compute_input": counted.input_us,
        "compute_infer": counted.infer_us,
        "compute_output": counted.output_us,
    }
    spent = {name: {"count": counted.requests, "ns": us * 1000} for name, us in parts.items()}
    return {
        "name": model,
        "version": str(version),
        "last_inference": counted.last_ms,
        "inference_count": counted.rows,
        "execution_count": counted.calls,
        "inference_stats": {"success": success, "fail": fail, **spent, "cache_hit": nothing, "cache_miss": nothing},
    }


async def repository_index(process: ApiProcess, *, ready: bool) -> list[dict[str, str]]:
    """Return every version of every model with its state, and the reason if it does not serve.

    `ready`: only those that do.
    """
    found = await asyncio.gather(*(_states(process, model) for model in process.settings.models))
    return [one for each in found for one in each if one["state"] == "READY" or not ready]


async def _states(process: ApiProcess, model: str) -> list[dict[str, str]]:
    try:
        states = await version_states(ModelUrl(model, Method.STATUS, None, None), process)
    except NotFound:
        return [{"name": model, "version": "", "state": "UNAVAILABLE", "reason": "no worker has loaded a version yet"}]
    return [
        {
            "name": model,
            "version": str(one.version),
            "state": "READY" if one.state == "AVAILABLE" else "UNAVAILABLE",
            "reason": "" if one.state == "AVAILABLE" else one.error or "no worker holds it",
        }
        for one in states
    ]


def no_control(model: str, *, load: bool) -> Unsupported:
    """Return the error for a request to load or unload a model."""
    verb = "load" if load else "unload"
    return Unsupported(
        f"failed to {verb} '{cut(model)}', explicit model load / unload is not allowed: versions come and go with the "
        "model's folder and [models.NAME] versions, see 'forecache models'"
    )


router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], generate_unique_id_function=operation_id)
_ERRORS = documented_errors(400, 404, 503)


@router.get("/models/stats", responses=_ERRORS)
async def all_statistics(process: Process) -> Response:
    """Return the statistics of all models, or the metadata of a model that is called `stats`."""
    if "stats" in process.settings.models:
        return json_response(await described_model(process, "stats", None))
    return json_response(await statistics(process, None, None))


@router.get("/models/{model}/stats", responses=_ERRORS)
@router.get("/models/{model}/versions/{version}/stats", responses=_ERRORS, openapi_extra=VERSIONED)
async def model_statistics(process: Process, model: str, version: VersionInPath) -> Response:
    """Return how many requests for tensors a model's versions got, ever, and how long these took."""
    return json_response(await statistics(process, model, version))


@router.get("/models/{model}/config", responses=_ERRORS)
@router.get("/models/{model}/versions/{version}/config", responses=_ERRORS, openapi_extra=VERSIONED)
async def model_configuration(process: Process, model: str, version: VersionInPath) -> Response:
    """Return a model's configuration in Triton's words."""
    return json_response(await configuration(process, model, version))


_INDEX: dict[str, Any] = {
    "requestBody": {
        "content": {
            "application/json": {"schema": {"type": "object", "properties": {"ready": {"type": "boolean"}}}},
        }
    }
}


@router.post("/repository/index", responses=_ERRORS, openapi_extra=_INDEX)
async def list_repository(request: Request, process: Process) -> Response:
    """Return every version of every model with its state; with `{"ready": true}` only those that serve."""
    body = await read_body(request)
    document = parse(body) if body else {}
    ready = document.get("ready", False) if isinstance(document, dict) else None
    if not isinstance(ready, bool):
        raise BadInput("the body must be an object; its 'ready' must be true or false")
    return json_response(await repository_index(process, ready=ready))


@router.post("/repository/models/{model}/load", responses=documented_errors(400))
async def load_model(model: str) -> Response:
    """Refuse: models are managed by the settings and the model's folder."""
    raise no_control(model, load=True)


@router.post("/repository/models/{model}/unload", responses=documented_errors(400))
async def unload_model(model: str) -> Response:
    """Refuse: models are managed by the settings and the model's folder."""
    raise no_control(model, load=False)
