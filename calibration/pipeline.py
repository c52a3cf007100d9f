"""The pipeline: from a config to a published bundle, stage by stage, and the evaluation of a published one."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from askance.calibration.cache import cache_folder
from askance.calibration.config import ClassifierConfig, Config
from askance.calibration.digests import combined, json_digest, state_digest, tensor_digest
from askance.calibration.evaluation import evaluate, summary
from askance.calibration.harness import Harness, fuse, gather
from askance.calibration.inputs import CalibrationInputs, load_inputs, new_detectors
from askance.calibration.progress import Tracked, say
from askance.calibration.report import report
from askance.calibration.stages import Stages
from askance.classifiers import build_classifier
from askance.detectors import Bundle, Calibration, Capture, Detector
from askance.detectors.bundle import publish, refuse_existing
from askance.detectors.conformal import table

PACKAGES = ("askance", "torch", "torchvision", "numpy", "scikit-learn", "advertorch", "foolbox", "gensim")


def calibrate(config: Config, out: Path, *, resume: bool = False) -> Bundle:
    """Fit, calibrate, attack, evaluate, and publish the bundle at `out`.

    Finished stages are kept in `<out>.partial` until the bundle is published; with `resume` they are not redone.

    Raises:
        AskanceError: the config, the data or the classifier cannot be used, or `out` exists.
    """
    refuse_existing(out)
    inputs = load_inputs(config)
    detectors = new_detectors(inputs)
    stages = Stages(out.with_name(out.name + ".partial"), _identity(inputs), resume=resume)
    for name, detector in detectors.items():
        stage = f"fit-{name}-{combined(detector.options.model_dump_json())}"
        detector.restore(stages.run(stage, partial(_fit, detector, inputs))).eval()
    harness = Harness(inputs, detectors, stages)
    tables = Calibration(
        levels=config.levels,
        tables={name: table(values) for name, values in harness.split("calibrate").scores.items()},
        fused=fuse(harness),
        single_pass=None if harness.single_pass is None else fuse(harness, harness.single_pass),
    )
    evidence = gather(harness, tables)
    say("figures and their intervals")
    evaluation = evaluate(evidence, config.levels, inputs.class_names)
    say("diagnostics")
    evaluation["diagnostics"] = harness.diagnoses()
    evaluation["splits"] = {name: len(images) for name, images in inputs.splits.items()}
    publish(
        out,
        classifier={
            "name": config.name,
            "factory": config.classifier.factory,
            "arguments": config.classifier.arguments,
            "layers": harness.tap.layers,
            "preprocessing": config.classifier.preprocessing,
            "class_names": inputs.class_names,
        },
        weights=inputs.weights,
        detectors=detectors,
        calibration=tables,
        evaluation=evaluation,
        summary=summary(evaluation),
        provenance={
            "data": {
                "sources": config.data.model_dump(mode="json"),
                "sha256": {name: images.digest() for name, images in inputs.splits.items()},
            },
            "config": config.model_dump(mode="json", exclude={"classifier": {"weights"}}),
            "packages": {package: version(package) for package in PACKAGES},
            "host": {"platform": platform.platform(), "python": sys.version.split()[0]},
        },
        extra_files=report(config.name, evaluation, evidence, config.levels),
    )
    stages.remove()
    return Bundle.open(out)


def _identity(inputs: CalibrationInputs) -> dict[str, Any]:
    """What all stages depend on, JSON-ready; what only some depend on is in their names."""
    identity = {
        "classifier": inputs.config.classifier.model_dump(mode="json", exclude={"weights"}),
        "weights": state_digest(inputs.weights),
        "data": {name: images.digest() for name, images in inputs.splits.items()},
        "askance": version("askance"),
    }
    if inputs.word_vectors is not None:  # the file may have changed under its name
        identity["words"] = tensor_digest(inputs.word_vectors)
    return identity


def _fit(detector: Detector, inputs: CalibrationInputs) -> Mapping[str, Tensor]:
    def stream(split: str) -> Tracked[Capture]:
        return Tracked(inputs.stream(split, detector), f"{detector.kind}: {split}")

    return detector.fit(stream("fit"), stream("held_out") if "held_out" in inputs.splits else None).state_dict()


def evaluate_bundle(bundle: Bundle, config: Config) -> dict[str, Any]:
    """The figures of `evaluate` for a published bundle, on the data, attacks, controls and baselines of `config`.

    All that is ours comes from the bundle; the baselines are fitted anew, on the config's `fit`, `calibrate` and `fuse`
    splits. What is finished is kept in the cache until all is, so that a run that was killed goes on where it was.

    Raises:
        ConfigError: the data's classes are not the bundle's.
        DataError: the images are not of the bundle's size.
    """
    screen = bundle.screen(build_classifier)
    entry = bundle.manifest.classifier
    classifier = ClassifierConfig(
        factory=entry.factory,
        arguments=entry.arguments,
        weights=bundle.path / entry.file,
        preprocessing=entry.preprocessing,
        class_names=entry.class_names,
    )
    inputs = load_inputs(config.model_copy(update={"classifier": classifier}))
    identity = _identity(inputs) | {"bundle": bundle.manifest.id}
    folder = cache_folder() / "evaluations" / json_digest(identity)
    stages = Stages(folder, identity, resume=True)
    harness = Harness(inputs, screen.detectors, stages)
    evidence = gather(harness, screen.calibration)
    evaluation = evaluate(evidence, screen.calibration.levels, inputs.class_names)
    stages.remove()
    return evaluation | {"bundle_id": bundle.manifest.id}
