"""The demo: the main job end to end on scikit-learn's digits, through a real server."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import torch
from torch import Tensor

from askance.answers import FUSED, JUDGED, SCORER_OF, Answer, Prediction, Screening, Verdict, said_of
from askance.calibration.cache import attack_cache
from askance.calibration.config import load_config
from askance.calibration.evaluation import BASELINE
from askance.calibration.inputs import load_inputs
from askance.calibration.metrics import detection
from askance.calibration.pipeline import calibrate
from askance.calibration.progress import say, track
from askance.calibration.report import PAGE
from askance.calibration.suite import AttackJob, run
from askance.calibration.training import train
from askance.evaluation import AttackFigures, Evaluation
from askance.service.client import Client
from askance.service.client_messages import ServiceError
from askance.service.launch import launched
from askance.writing import temporary_folder

SERVE = ("-m", "askance", "serve")


@dataclass(frozen=True)
class DemoFigures:
    """What the demo found, every score read off the wire.

    Attributes:
        evaluation: the figures.
        verdicts: {images: {verdict: how many}}.
        reasons: {images: {reason: how many it is flagged for}}, at the level "suspect" or beyond.
        examples: of each kind of images the first one that is not CLEAN: its verdict and reasons, in a line.
        latency_ms: of one request, {"p50", "p99"}.
        report: the calibration's page.
    """

    evaluation: Evaluation
    verdicts: Mapping[str, Mapping[str, int]]
    reasons: Mapping[str, Mapping[str, int]]
    examples: Mapping[str, str]
    latency_ms: Mapping[str, float]
    report: bytes

    def as_json(self) -> dict[str, Any]:
        """JSON-ready: the evaluation's figures, `verdicts.<images>.<verdict>`, `reasons.<images>.<reason>`,
        `examples.<images>` and `latency_ms.p50|p99`.
        """
        return self.evaluation.as_json() | {
            "verdicts": dict(self.verdicts),
            "reasons": dict(self.reasons),
            "examples": dict(self.examples),
            "latency_ms": dict(self.latency_ms),
        }


def run_demo() -> DemoFigures:
    """Train, calibrate, serve on free ports, and screen clean and attacked images over gRPC."""
    torch.set_num_threads(1)  # the tensors are tiny: a second thread per operation only waits for the first
    with as_file(files("askance.configs")) as configs, temporary_folder() as folder:
        config = load_config(configs / "digits.toml")
        weights = folder / "classifier.safetensors"
        config = config.model_copy(update={"classifier": config.classifier.model_copy(update={"weights": weights})})
        say("training a small classifier on handwritten digits")
        train(config)
        say("fitting and calibrating the detectors")
        bundle = calibrate(config, folder / "bundle")
        inputs = load_inputs(config)
        images = inputs.splits["evaluate"]
        say("serving, and screening over gRPC")
        with (
            launched([*SERVE, str(bundle.path), "--port", "0", "--metrics-port", "0", "--disclose"]) as serving,
            Client(serving.target) as client,
        ):
            clean, seconds = _one_by_one(client, images.pixels())
            predicted = torch.tensor([_prediction(answer).index for answer in clean])
            chosen = torch.nonzero(predicted == images.y).flatten()[: config.evaluation.attacked_images]
            jobs = [AttackJob(one, images[chosen].pixels(), images[chosen].y) for one in config.evaluation.attacks]
            attacked = {
                job.attack.name: _streamed(client, pixels)
                for job, pixels in zip(jobs, run(inputs.target, jobs, attack_cache()), strict=True)
            }

    evaluation = bundle.evaluation()
    rates = _flag_rates(clean)
    attacks: dict[str, AttackFigures] = {}
    figures: dict[str, dict[str, dict[str, float]]] = {"auroc": {}, "tpr_at_fpr_0.05": {}}
    shown = {"clean": clean}
    clean_scores = _scores(clean)
    for name, answers in attacked.items():
        succeeded = [
            answer
            for answer, label in zip(answers, images.y[chosen].tolist(), strict=True)
            if _prediction(answer).index != label
        ]
        attacks[name] = AttackFigures(attempted=len(answers), successful=len(succeeded))
        shown[f"{name} (successful)"] = succeeded
        for figure, by_attack in figures.items():
            found = {d: detection(clean_scores[d], scores) for d, scores in _scores(succeeded).items()}
            by_attack[name] = {d: row[figure] for d, row in found.items() if row is not None}
    return DemoFigures(
        Evaluation.from_json(
            {
                "classifier": evaluation.classifier,
                "target_flag_rate": dict(config.levels.items()),
                "attacks": attacks,
                "clean_flag_rate": rates[FUSED],
                "detector_clean_flag_rate": rates,
                "bundle_id": bundle.manifest.id,
                **figures,
            }
        ),
        {name: verdicts_of(answers) for name, answers in shown.items()},
        {name: reasons_of(answers) for name, answers in shown.items()},
        {name: line for name, answers in shown.items() if (line := example_of(answers)) is not None},
        {"p50": 1000 * float(np.percentile(seconds, 50)), "p99": 1000 * float(np.percentile(seconds, 99))},
        bundle.content(PAGE),
    )


def _one_by_one(client: Client, pixels: Tensor) -> tuple[list[Answer], list[float]]:
    """Screen images one at a time; the answers and each one's seconds."""
    answers, seconds = [], []
    for image in track(list(pixels.numpy()), "screening clean images"):
        start = time.perf_counter()
        answers.append(client.screen(image))
        seconds.append(time.perf_counter() - start)
    return answers, seconds


def _streamed(client: Client, pixels: Tensor) -> list[Answer]:
    """Screen images over one stream."""
    answers = []
    for answer in client.screen_many(list(pixels.numpy())):
        if isinstance(answer, ServiceError):
            raise answer
        answers.append(answer)
    return answers


def _prediction(answer: Answer) -> Prediction:
    assert answer.prediction is not None  # the server annotates
    return answer.prediction


def _screening(answer: Answer) -> Screening:
    assert answer.screening is not None, answer.reason  # and discloses
    return answer.screening


def _scores(answers: list[Answer]) -> dict[str, Tensor]:
    rows = [
        {word.name: word.score for word in (*_screening(answer).detectors, _screening(answer).fused)}
        | {BASELINE: 1 - _prediction(answer).probability}
        for answer in answers
    ]
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]} if rows else {}


def _flag_rates(answers: list[Answer]) -> dict[str, dict[str, float]]:
    words = [{word.name: word for word in (*one.detectors, one.fused)} for one in map(_screening, answers)]
    return {
        name: {
            level: sum(level in of_image[name].flags for of_image in words) / len(words)
            for level in ("suspect", "adversarial")
        }
        for name in words[0]
    }


def verdicts_of(answers: list[Answer]) -> dict[str, int]:
    """How many answers have each verdict, by name."""
    counts = Counter(answer.verdict for answer in answers)
    return {verdict.value: counts[verdict] for verdict in JUDGED}


def reasons_of(answers: list[Answer]) -> dict[str, int]:
    """How many answers are flagged for each reason, by name."""
    counts = Counter(reason.name for answer in answers for reason in _screening(answer).reasons if reason.flags)
    return {name: counts[name] for name in SCORER_OF}


def example_of(answers: list[Answer]) -> str | None:
    """The verdict of the first answer that is not CLEAN, and the reasons that it is flagged for; None without any."""
    for answer in answers:
        if answer.verdict is not Verdict.CLEAN:
            flagged = said_of((one.name, one.p_value) for one in _screening(answer).reasons if one.flags)
            return f"{answer.verdict}: {flagged}"
    return None
