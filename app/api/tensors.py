"""What the routes of both serving protocols share: computing tensors while the client waits."""

from __future__ import annotations

from fastapi import Request

from app.api.cards import ModelCard
from app.api.disconnects import ClientWatch
from app.api.parts import Parts
from inference.schema import Block
from inference.serving import Outputs


async def compute(request: Request, parts: Parts, model: str, inputs: Block, version: int | None) -> Outputs | None:
    """Return the outputs; None when the client has hung up meanwhile.

    Raises what `predict_tensors` raises, and what `AccessControl.charge` does of the rows.
    """
    request.app.gate.charge(
        request.scope, rows=max((len(tensor) for tensor in inputs.values() if tensor.ndim), default=0)
    )
    with ClientWatch(request.receive):
        return await parts.service.predict_tensors(model, inputs, version=version)
    return None


async def held_versions(parts: Parts, model: str, card: ModelCard) -> set[int]:
    """Return the versions of a model that real-time workers which are alive hold.

    Raises:
        StoreUnavailable: Redis did not answer in time.
    """
    queue = parts.settings.realtime_queue(model)
    roster = await parts.in_thread(lambda: parts.deployment.presence.roster(queue))
    held = {version for worker in roster.alive if worker.ready for version in worker.versions.get(model, ())}
    # a worker tells only every few seconds what it holds, and may have activated a version meanwhile
    return held | {card.active} if held and card.active is not None else held
