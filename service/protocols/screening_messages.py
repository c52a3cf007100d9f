"""Messages: what the wire says of an Answer, and of the bundle that answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from askance.answers import Answer, DetectorVerdict, Verdict
from askance.service.config import ServerConfig
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.runtime.model import LoadedBundle

_VERDICTS = {
    Verdict.CLEAN: pb.CLEAN,
    Verdict.SUSPECT: pb.SUSPECT,
    Verdict.ADVERSARIAL: pb.ADVERSARIAL,
    Verdict.UNSCREENED: pb.UNSCREENED,
    Verdict.BLOCKED: pb.BLOCKED,
}
_RESIZES = {"refuse": pb.Input.REFUSE, "bilinear": pb.Input.BILINEAR}


def screen_response(
    request_id: str, bundle_id: str, answer: Answer, *, verdict: bool, scores: bool
) -> pb.ScreenResponse:
    """The answer for one image: its prediction; the verdict and the scores, where they are to be seen."""
    assert answer.prediction is not None, "a blocked image has an error in place of a response"
    prediction = answer.prediction
    response = pb.ScreenResponse(
        request_id=request_id,
        bundle_id=bundle_id,
        prediction=pb.Prediction(index=prediction.index, name=prediction.label, probability=prediction.probability),
        probabilities=prediction.probabilities,
    )
    if verdict and answer.verdict is not None:
        response.verdict = _VERDICTS[answer.verdict]
    if scores and answer.screening is not None:
        response.p_value, response.score = answer.screening.fused.p_value, answer.screening.fused.score
        response.detectors.extend(_detector_verdict(word) for word in answer.screening.detectors)
        response.reasons.extend(
            pb.Reason(name=reason.name, p_value=reason.p_value, flags=reason.flags)
            for reason in answer.screening.reasons
        )
    return response


def _detector_verdict(word: DetectorVerdict) -> pb.DetectorVerdict:
    message = pb.DetectorVerdict(name=word.name, score=word.score, p_value=word.p_value, flags=word.flags)
    if word.explanation is not None:
        message.explanation.CopyFrom(_explanation(word.name, word.explanation))
    return message


def _explanation(name: str, said: Mapping[str, Any]) -> pb.Explanation:
    """Ours have messages whose fields are what `explain_one` says."""
    if name in pb.Explanation.DESCRIPTOR.fields_by_name:
        return pb.Explanation(**{name: said})
    message = pb.Explanation()
    message.other.update(said)
    return message


def describe_response(bundle: LoadedBundle, config: ServerConfig) -> pb.DescribeResponse:
    """What is served, what it accepts, and how it is calibrated."""
    screen = bundle.screen
    preprocessing = screen.preprocessing
    response = pb.DescribeResponse(
        bundle_id=bundle.bundle_id,
        classifier=bundle.classifier,
        class_names=screen.class_names,
        input=pb.Input(
            channels=preprocessing.channels,
            height=preprocessing.height,
            width=preprocessing.width,
            mean=preprocessing.mean,
            std=preprocessing.std,
            resize=_RESIZES[preprocessing.resize],
        ),
        layers=screen.layers,
        detectors=[
            pb.DetectorDescription(name=name, layers=detector.layers) for name, detector in screen.detectors.items()
        ],
        levels=[pb.Level(name=name, false_positive_rate=target) for name, target in screen.calibration.levels.items()],
        calibration_samples=bundle.calibration_samples,
        fusion_samples=bundle.fusion_samples,
        max_message_bytes=config.limits.max_message_bytes,
        max_image_pixels=config.limits.max_image_pixels,
    )
    response.created.FromDatetime(bundle.created)
    return response
