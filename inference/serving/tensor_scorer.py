"""The worker's side of the serving protocols: a model's own tensors in and out, with no feature contract between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inference.errors import ForecacheError, NotFound, PredictionFailed
from inference.failures import Failures
from inference.logs import get_logger
from inference.models import LoadedModel, ModelHost
from inference.protocols.tensors import check_outputs, check_tensors, pack, unpack
from inference.schema import Block, Signature
from inference.serving.messages import check_tensor_message
from inference.serving.scorer import defect
from inference.settings import Settings

log = get_logger(__name__)

#: returns the present instant unless a model's deadline has passed, which raises DeadlineExceeded
InTime = Callable[[str, float | None], float]


class TensorScorer:
    """Computes tensors as they are: NaN goes to the model, and whatever it gives comes back.

    A result is `{"model", "model_version", "outputs"}` with packed tensors, or `{"error"}` with its code and message.
    """

    def __init__(self, settings: Settings, host: ModelHost, in_time: InTime) -> None:
        self._settings = settings
        self._host = host
        self._in_time = in_time
        self._defects = Failures(__name__, "request")

    def predict_tensors(self, model: Any, inputs: Any, *, version: Any = None, deadline: Any = None) -> dict[str, Any]:
        """Compute all rows in one call of the model. `version` None: the active one; another must be held already.

        `deadline`: epoch seconds in Redis time; later than that, the model is not touched.
        """
        try:
            check_tensor_message(model=model, deadline=deadline, version=version)
            self._settings.model(model)
            self._in_time(model, deadline)
            loaded = self._held(model, version)
            tensors = unpack(inputs)
            check_tensors(tensors, loaded.record.signature.inputs)
            outputs = model_outputs(loaded.predict(tensors), loaded.record.signature)
            check_outputs(outputs)
            packed = pack(outputs)
        except ForecacheError as error:
            if isinstance(error, PredictionFailed):
                # the API tells nobody the model's own words: they belong here
                log.warning("prediction.failed", model=model, error=error.message)
            return {"error": error.to_json()}
        except Exception as error:  # noqa: BLE001 - `defect` logs it
            return {"error": defect(self._defects, error, model).to_json()}
        return {"model": model, "model_version": loaded.record.version, "outputs": packed}

    def _held(self, model: str, version: int | None) -> LoadedModel:
        """Return the version; one that is merely on disk is not loaded because somebody asks for it."""
        if version is not None and version not in self._host.versions().get(model, ()):
            raise NotFound(f"version {version} of model {model!r} is not held by the worker that was asked")
        return self._host.get(model, version)


def model_outputs(served: Block, signature: Signature) -> Block:
    """Return outputs in the shapes that the model itself gives, in the signature's order."""
    return {
        spec.name: served[spec.name][..., None] if spec.name in signature.columns else served[spec.name]
        for spec in signature.outputs
    }
