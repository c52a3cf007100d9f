"""Messages: what the wire says of a Screening and of what is served."""

from __future__ import annotations

from google.protobuf.struct_pb2 import Struct

from askance.detectors.screen import DetectorVerdict, Prediction, Screening, Verdict
from askance.service.config import ServerConfig
from askance.service.pb.askance.v1 import screening_pb2 as pb
from askance.service.runtime.model import LoadedBundle

_VERDICTS = {
    Verdict.CLEAN: pb.Verdict.CLEAN,
    Verdict.SUSPECT: pb.Verdict.SUSPECT,
    Verdict.ADVERSARIAL: pb.Verdict.ADVERSARIAL,
}
_RESIZES = {"refuse": pb.Input.REFUSE, "bilinear": pb.Input.BILINEAR}


def screen_response(
    request_id: str, bundle_id: str, answer: Prediction, *, verdict: bool, scores: bool
) -> pb.ScreenResponse:
    """The answer for one image: its prediction; the verdict and the scores, where they are to be seen."""
    response = pb.ScreenResponse(
        request_id=request_id,
        bundle_id=bundle_id,
        prediction=pb.Prediction(index=answer.index, name=answer.label, probability=answer.probability),
        probabilities=answer.probabilities,
    )
    if verdict:
        response.verdict = _VERDICTS[answer.verdict] if isinstance(answer, Screening) else pb.Verdict.UNSCREENED
    if scores and isinstance(answer, Screening):
        response.p_value, response.score = answer.fused.p_value, answer.fused.score
        response.detectors.extend(_detector_verdict(word) for word in answer.detectors)
    return response


def _detector_verdict(word: DetectorVerdict) -> pb.DetectorVerdict:
    message = pb.DetectorVerdict(name=word.name, score=word.score, p_value=word.p_value, flags=word.flags)
    if word.explanation is not None:
        explanation = Struct()
        explanation.update(word.explanation)
        message.explanation.CopyFrom(explanation)
    return message


def describe_response(served: LoadedBundle, config: ServerConfig) -> pb.DescribeResponse:
    """What is served, what it accepts, and how it is calibrated."""
    screen = served.screen
    preprocessing = screen.preprocessing
    response = pb.DescribeResponse(
        bundle_id=served.bundle_id,
        classifier=served.classifier,
        class_names=screen.class_names,
        input=pb.Input(
            channels=preprocessing.channels,
            height=preprocessing.height,
            width=preprocessing.width,
            mean=preprocessing.mean,
            std=preprocessing.std,
            resize=_RESIZES[preprocessing.resize],
        ),
        layers=screen.tap.layers,
        detectors=[
            pb.DetectorDescription(name=name, layers=detector.layers) for name, detector in screen.detectors.items()
        ],
        levels=[pb.Level(name=name, false_positive_rate=target) for name, target in screen.calibration.levels.items()],
        calibration_samples=served.calibration_samples,
        fusion_samples=served.fusion_samples,
        max_message_bytes=config.max_message_bytes,
        max_image_pixels=config.max_image_pixels,
    )
    response.created.FromDatetime(served.created)
    return response
