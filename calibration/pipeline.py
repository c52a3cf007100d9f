"""The pipeline: from a config to a published bundle, stage by stage, and the evaluation of a published one."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from askance.calibration.cache import cache_folder
from askance.calibration.config import ClassifierConfig, Config
from askance.calibration.data import require_classes
from askance.calibration.digests import combined, json_digest, state_digest, tensor_digest
from askance.calibration.doubts import doubts
from askance.calibration.evaluation import evaluate
from askance.calibration.exporting import graphs_of
from askance.calibration.gallery import gallery, success_by_class
from askance.calibration.harness import Harness, calibration_of, gather, sentinel_candidates
from askance.calibration.inputs import CalibrationInputs, load_inputs, new_detectors
from askance.calibration.plan import plan
from askance.calibration.progress import Clock, Tracked, say
from askance.calibration.report import report
from askance.calibration.stages import Stages, alone_in
from askance.classifiers import build_classifier
from askance.classifiers.trust import is_trusted, standing_in
from askance.detectors import Bundle, Capture, Detector
from askance.detectors.publishing import publish, refuse_existing
from askance.engines import Engine
from askance.errors import ConfigError, FileError
from askance.evaluation import Evaluation
from askance.screening.bundle import NO_GRAPH
from askance.writing import temporary_folder

SETTLING_IMAGES = 2000  # of the fit split, on which options that name an aim are settled
PACKAGES = ("askance", "torch", "torchvision", "numpy", "scikit-learn", "advertorch", "foolbox", "pyautoattack")


def calibrate(config: Config, out: Path, *, resume: bool = False) -> Bundle:
    """Fit, calibrate, attack, evaluate, and publish the bundle at `out`.

    Finished stages are kept in `<out>.partial` until the bundle is published; with `resume` they are not redone.

    Raises:
        AskanceError: the config, the data or the classifier cannot be used, or `out` exists.
    """
    refuse_existing(out)
    return calibrate_inputs(load_inputs(config), out, resume=resume)


def calibrate_inputs(inputs: CalibrationInputs, out: Path, *, resume: bool = False) -> Bundle:
    """The same for inputs that are loaded already."""
    require_classes(inputs.splits, inputs.class_names, needed=("fit",))
    detectors = new_detectors(inputs)
    for line in plan(inputs, detectors):
        say(line)
    with alone_in(out.with_name(out.name + ".partial")) as folder:
        refuse_existing(out)  # by another calibration, while this one was not alone
        try:
            _calibrated(inputs, detectors, Stages(folder, _identity(inputs), resume=resume), out)
        except FileError as error:
            raise FileError(f"{error}; finished stages are kept: go on with --resume (in Python resume=True)") from None
    return Bundle.open(out)


def _calibrated(inputs: CalibrationInputs, detectors: Mapping[str, Detector], stages: Stages, out: Path) -> None:
    settings, clock = inputs.settings, Clock()
    for name, detector in detectors.items():
        with clock.stage(f"fit {name}"):
            detector.settle(inputs.sample("fit", SETTLING_IMAGES, detector), len(inputs.splits["fit"]))
            stage = f"fit-{name}-{combined(detector.options.model_dump_json())}"
            detector.restore(stages.run(stage, partial(_fit, detector, inputs))).eval()
    harness = Harness(inputs, detectors, stages)
    with clock.stage("diagnostics"):
        diagnostics = harness.diagnoses()
        found = {"diagnostics": diagnostics, "doubts": doubts(inputs, detectors, diagnostics)}
    with clock.stage("inside"):
        inside = harness.inside()
    with clock.stage("seen attacks, fusion, tables"):
        calibration = calibration_of(harness)
    with clock.stage("attacks, controls, baselines"):
        evidence = gather(harness, calibration)
    with clock.stage("figures and their intervals"):
        evaluation = evaluate(evidence, settings.levels, inputs.class_names)
        shown = gallery(evidence, inputs.splits["evaluate"])
        success = success_by_class(evidence, len(inputs.class_names))
        inside = inside.model_copy(update={"gallery": shown, "success": success})
    sizes = {name: len(images) for name, images in inputs.splits.items()}
    evaluation = evaluation.model_copy(update=found | {"splits": sizes})
    digests = {name: images.digest() for name, images in inputs.splits.items()}
    with clock.stage("sentinels"):
        clean, attacked = sentinel_candidates(harness)
    say("graphs, bundle")
    manifest = publish(
        out,
        classifier={
            "name": settings.name,
            "factory": inputs.factory,
            "arguments": inputs.arguments,
            "layers": harness.tap.layers,
            "preprocessing": inputs.preprocessing,
            "class_names": inputs.class_names,
            "output": inputs.output,
        },
        weights=inputs.weights,
        detectors=detectors,
        calibration=calibration,
        build=standing_in(inputs.classifier, ()) if inputs.factory is None else build_classifier,
        clean=clean,
        attacked=attacked,
        evaluation=evaluation.as_json(),
        summary=evaluation.summary(),
        provenance={
            **inputs.provenance,
            "data": {**inputs.provenance.get("data", {}), "sha256": digests},
            "packages": {package: version(package) for package in PACKAGES},
            "seconds": clock.seconds,
            "host": {"platform": platform.platform(), "python": sys.version.split()[0]},
        },
        export=graphs_of,
        extra_files=report(settings.name, evaluation, evidence, settings.levels, inside),
    )
    if why := manifest.provenance.get(NO_GRAPH):
        say(f"no graph, so that servers need torch: {why}")
    stages.remove()


def _identity(inputs: CalibrationInputs) -> dict[str, Any]:
    """What all stages depend on, JSON-ready; what only some depend on is in their names."""
    identity: dict[str, Any] = {
        "classifier": {
            "factory": inputs.factory,
            "arguments": dict(inputs.arguments),
            "preprocessing": inputs.preprocessing.model_dump(mode="json"),
            "class_names": inputs.class_names,
        },
        "weights": state_digest(inputs.weights),
        "data": {name: images.digest() for name, images in inputs.splits.items()},
        "askance": version("askance"),
    }
    if inputs.output is not None:
        identity["output"] = inputs.output
    if inputs.word_vectors is not None:  # the file may have changed under its name
        identity["words"] = tensor_digest(inputs.word_vectors)
    return identity


def _fit(detector: Detector, inputs: CalibrationInputs) -> Mapping[str, Tensor]:
    def stream(split: str) -> Tracked[Capture]:
        return Tracked(inputs.stream(split, detector), f"{detector.kind}: {split}")

    return detector.fit(stream("fit"), stream("held_out") if "held_out" in inputs.splits else None).state_dict()


def evaluate_bundle(bundle: Bundle, config: Config, engine: Engine = Engine.TORCH) -> Evaluation:
    """The figures of `evaluate` for a published bundle, on the data, attacks, controls and baselines of `config`.

    All that is ours comes from the bundle; the baselines are fitted anew, on the config's `fit`, `calibrate` and `fuse`
    splits. What is finished is kept in the cache until all is, so that a run that was killed goes on where it was.

    Args:
        bundle: opened.
        config: what it is tried on.
        engine: what computes the bundle; the attacks, and the baselines, are torch's always.

    Raises:
        BundleError: it has no graph, and one is wanted.
        ConfigError: the data's classes are not the bundle's, or the bundle names no factory, or one that is neither
            shipped nor the config's.
        DataError: the images are not of the bundle's size.
    """
    return evaluate_inputs(bundle, inputs_of(bundle, config), engine)


def inputs_of(bundle: Bundle, config: Config) -> CalibrationInputs:
    """A published bundle's classifier, and the data and settings of a config.

    Raises:
        ConfigError: the data's classes are not the bundle's, or the bundle names no factory, or one that is neither
            shipped nor the config's.
        DataError: the images are not of the bundle's size.
    """
    factory, entry = trusted_factory(bundle, config), bundle.manifest.classifier
    classifier = ClassifierConfig(
        factory=factory,
        arguments=entry.arguments,
        weights=bundle.path / entry.file,
        preprocessing=entry.preprocessing,
        class_names=entry.class_names,
        output=entry.output,
    )
    weights = bundle.tensors(entry)  # as they were verified: the file may be another by now
    return load_inputs(config.model_copy(update={"classifier": classifier}), weights)


def trusted_factory(bundle: Bundle, config: Config) -> str:
    """What builds a bundle's classifier, if it comes along or a config names it, too.

    Raises:
        ConfigError: neither, or the bundle names none.
    """
    entry = bundle.manifest.classifier
    if entry.factory is None:
        raise ConfigError(f"{bundle.path} names no factory for its classifier: use askance.evaluate with classifier=")
    if not is_trusted(entry.factory, [config.classifier.factory]):
        raise ConfigError(
            f"{bundle.path}: its classifier is built by {entry.factory!r}, the config's by "
            f"{config.classifier.factory!r}: name the bundle's in the config, if you trust it to be imported"
        )
    return entry.factory


@contextmanager
def _in_the_cache(name: str) -> Iterator[Path]:
    """A folder for stages; where the cache cannot be written, one that does not last."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(alone_in(cache_folder() / "evaluations" / name))
        except FileError as error:
            say(f"what is finished is not kept for another run: {error}")
            folder = stack.enter_context(temporary_folder())
        yield folder


def evaluate_inputs(bundle: Bundle, inputs: CalibrationInputs, engine: Engine = Engine.TORCH) -> Evaluation:
    """The same for inputs that are loaded already; their classifier holds the bundle's weights."""
    require_classes(inputs.splits, inputs.class_names, needed=())
    detectors, calibration = bundle.detectors(), bundle.calibration()
    reader = bundle.screen_by_graph().reader if bundle.goes_by_graph(engine) else None
    computed = engine if reader is None else reader.engine
    identity = _identity(inputs) | {"bundle": bundle.manifest.id, "engine": computed}
    with _in_the_cache(json_digest(identity)) as folder:
        stages = Stages(folder, identity, resume=True)
        harness = Harness(inputs, detectors, stages, reader)
        evidence = gather(harness, calibration)
        evaluation = evaluate(evidence, calibration.levels, inputs.class_names)
        stages.remove()
    return evaluation.model_copy(update={"bundle_id": bundle.manifest.id})
