"""The Open Inference Protocol apart from how it travels: what gRPC and HTTP both ask, with plain data in and out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from askance.errors import AskanceError
from askance.service.call import Call, Identity, Role
from askance.service.errors import Code, StatusError, invalid, withheld
from askance.service.guard.admission import State
from askance.service.protocols import inference_models as models
from askance.service.protocols.base import Parts
from askance.service.protocols.inference_names import TensorNames
from askance.service.protocols.inference_tensors import (
    ENCODED,
    IMAGE,
    OUTPUT_NAMES,
    InferenceRequest,
    Output,
    OutputTensor,
    Parameters,
    RequestedOutput,
    error_of,
    images_of,
    shown,
    top_classes,
)
from askance.service.runtime.model import LoadedBundle

DETAIL = "detail"
"""The request's parameter that names how much to say, instead of a list of outputs."""
_DETAILS = {
    "verdict": (Role.PREDICT,),
    "scores": (Role.PREDICT, Role.SCORES),
    "explanations": (Role.PREDICT, Role.SCORES, Role.EXPLANATIONS),
}
TIMEOUT = "timeout"
"""The request's parameter that says after how many microseconds nobody waits for the answer; 0 is never."""
CLASSIFICATION = "classification"
"""The parameter of a requested output that asks for its greatest values as text (Triton's classification extension)."""
CLASSIFIED = ("probabilities", "logits")
# what befalls one image of a batch alone
_ITEMS = (Code.INVALID_ARGUMENT, Code.PERMISSION_DENIED, Code.INTERNAL)


@dataclass(frozen=True)
class InferenceAnswer:
    """The answer to a request to infer.

    Attributes:
        bundle: what answered.
        model_name, model_version: what the client called it; where it named no version, its own.
        outputs: in the order that they were asked for.
    """

    bundle: LoadedBundle
    model_name: str
    model_version: str
    outputs: Sequence[OutputTensor]

    @property
    def parameters(self) -> dict[str, str]:
        """What goes with it: the bundle's id, and the names of the detectors."""
        return {"bundle_id": self.bundle.bundle_id, "detectors": ",".join(self.bundle.screen.detectors)}


class InferenceCore:
    """Answers the methods of the protocol.

    Args:
        parts: as for a protocol.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        config = parts.config
        self.max_batch = min(config.inference.max_batch, config.limits.queue_size)
        self._inputs = TensorNames("model.inputs", config.model.inputs, (IMAGE, ENCODED))
        self._outputs = TensorNames("model.outputs", config.model.outputs, OUTPUT_NAMES)
        self._model = models.Model(config.model, self._inputs, self._outputs)

    def is_ready(self) -> bool:
        """Whether the server serves, and will go on."""
        return self._parts.admission.state is State.SERVING

    def is_model_ready(self, name: str, version: str) -> bool:
        """Whether the model is served; another name or version is not."""
        try:
            self._parts.repository.find(name, version)
        except StatusError:
            return False
        return self.is_ready()

    def server_metadata(self) -> dict[str, Any]:
        """Name, version, extensions."""
        return models.server_metadata()

    def model_metadata(self, name: str, version: str) -> dict[str, Any]:
        """Inputs and outputs."""
        bundle = self._parts.repository.find(name, version).bundle
        return self._model.metadata(name, bundle, [one.version for one in self._parts.repository.versions()])

    def model_config(self, name: str, version: str) -> dict[str, Any]:
        """Inputs, outputs and the largest batch."""
        return self._model.config(name, self._parts.repository.find(name, version).bundle, self.max_batch)

    async def model_statistics(self, name: str, version: str) -> list[dict[str, Any]]:
        """Counts and times of the model, all its versions together, or, without a name, of all models: the same."""
        repository = self._parts.repository
        bundle = (repository.find(name, version) if name else repository.default).bundle
        called = {"name": name or bundle.classifier, "version": version or bundle.version}
        return [called | models.model_statistics(bundle, await self._parts.totals())]

    def repository_index(self) -> list[dict[str, Any]]:
        """The one model, in each of its versions, by each of its names."""
        repository = self._parts.repository
        versions = self._model.versions([one.version for one in repository.versions()])
        return models.repository_index(repository.names(), versions)

    async def load(self, name: str, parameters: Parameters) -> None:
        """Load the model anew from where it is, and the candidate; the old ones stay until the new ones are there, and
        if that fails.

        Raises:
            StatusError: NOT_FOUND, INVALID_ARGUMENT; FAILED_PRECONDITION, it cannot be loaded.
        """
        self._parts.repository.find(name)
        if parameters:
            raise invalid("parameters", "none: a model is loaded from where it is", ", ".join(sorted(parameters)))
        try:
            await self._parts.reload()
        except AskanceError as error:
            raise StatusError(Code.FAILED_PRECONDITION, str(error)) from None

    async def unload(self, name: str, parameters: Parameters) -> None:
        """Unload the version that the parameter `version` names, which must not be the default one.

        Raises:
            StatusError: NOT_FOUND; FAILED_PRECONDITION, it is the default one.
        """
        await self._parts.unload(self._parts.repository.find(name, str(parameters.get("version", ""))).version)

    async def infer(self, request: InferenceRequest, call: Call) -> InferenceAnswer:
        """Screen a batch; an image that fails, or is blocked, gets its error in its row, unless all do.

        Raises:
            StatusError: what is wrong with all of it.
        """
        repository, screener = self._parts.repository, self._parts.screener
        call.deadline = _deadline(request, call.deadline)
        version = repository.find(request.model_name, request.model_version)
        if version is not repository.default:  # another guard is another oracle
            call.identity.require(Role.SCORES, "another version than the default one")
        screen = version.bundle.screen
        outputs = self._wanted(request, version.bundle, call.identity)
        normalised = self._parts.config.model.input == "normalised"
        images = images_of(request, screen.preprocessing, self.max_batch, self._inputs, normalised=normalised)
        explain = any(output.role is Role.EXPLANATIONS for output in outputs)
        bundle, outcomes = await screener.screen(images, explain, call, version)
        errors = [error for outcome in outcomes if (error := error_of(outcome)) is not None]
        fatal = [error for error in errors if error.code not in _ITEMS]
        if fatal or len(errors) == len(outcomes):
            raise (fatal or errors)[0]
        called = request.model_name, request.model_version or bundle.version
        return InferenceAnswer(bundle, *called, [output.tensor(outcomes) for output in outputs])

    def _wanted(self, request: InferenceRequest, bundle: LoadedBundle, client: Identity) -> list[Output]:
        """The outputs that a request names, in its order; without names all that the client may see, unexplained."""
        shows_verdicts = self._parts.screener.shows_verdicts
        known = self._model.outputs(bundle)
        detail = _detail(request)
        if detail is not None:
            for role in detail:
                client.require(role, f"parameters[{DETAIL}]")
            if not shows_verdicts:
                raise withheld()
            return [output for output in known.values() if output.role in detail]
        if not request.outputs:
            shown = client.roles - {Role.EXPLANATIONS}
            return [one for one in known.values() if one.role in shown and (one.is_of_prediction or shows_verdicts)]
        wanted = [self._asked(one, known, bundle) for one in request.outputs]
        for output in wanted:
            client.require(output.role, f"the output {output.name}")
            if not (output.is_of_prediction or shows_verdicts):
                raise withheld()
        return wanted

    def _asked(self, asked: RequestedOutput, known: dict[str, Output], bundle: LoadedBundle) -> Output:
        """One requested output, by the name that it was asked for; or its greatest values by the classification
        extension.
        """
        own = self._outputs.own(asked.name)
        if own not in known:
            raise invalid("outputs", f"names among {', '.join(map(self._outputs.shown, known))}", shown(asked.name))
        output = replace(known[own], name=asked.name)
        unknown = sorted(set(asked.parameters) - {CLASSIFICATION, "binary_data"})
        if unknown:
            raise invalid(f"outputs[{asked.name}].parameters", f"{CLASSIFICATION} or none", ", ".join(unknown)[:80])
        if CLASSIFICATION not in asked.parameters:
            return output
        count, classes = asked.parameters[CLASSIFICATION], len(bundle.screen.class_names)
        where = f"outputs[{asked.name}].parameters.{CLASSIFICATION}"
        if own not in CLASSIFIED:
            raise invalid(where, f"it on the outputs {' and '.join(CLASSIFIED)} alone", f"it on {asked.name}")
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= classes:
            raise invalid(where, f"a number of classes from 1 to {classes}", shown(count))
        return top_classes(output, bundle.screen.class_names, count)


def _deadline(request: InferenceRequest, deadline: float | None) -> float | None:
    """The nearer one of the call's own deadline and what the parameter `timeout` says."""
    microseconds = request.parameters.get(TIMEOUT, 0)
    if isinstance(microseconds, bool) or not isinstance(microseconds, int) or microseconds < 0:
        raise invalid(f"parameters[{TIMEOUT}]", "a whole number of microseconds", shown(microseconds))
    if microseconds == 0:
        return deadline
    own = time.monotonic() + microseconds / 1e6
    return own if deadline is None else min(own, deadline)


def _detail(request: InferenceRequest) -> tuple[Role, ...] | None:
    """What the parameter `detail` asks to see; None without it."""
    if DETAIL not in request.parameters:
        return None
    asked = request.parameters[DETAIL]
    if asked not in _DETAILS:
        raise invalid(f"parameters[{DETAIL}]", f"a string among {', '.join(_DETAILS)}", shown(asked))
    if request.outputs:
        raise invalid("outputs", f"none beside parameters[{DETAIL}]", f"{len(request.outputs)}")
    return _DETAILS[str(asked)]
