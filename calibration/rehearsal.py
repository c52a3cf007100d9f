"""A rehearsal: a config's detectors fitted on a few images within a minute, to see what each will give."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from askance.calibration.config import Config
from askance.calibration.data import shuffled, sliced, split_faults
from askance.calibration.doubts import doubts
from askance.calibration.explain import explain
from askance.calibration.inputs import CalibrationInputs, checked, new_detectors
from askance.calibration.pace import seconds_per_image
from askance.calibration.subject import Known
from askance.errors import ConfigError, DataError

SECONDS = 30.0  # for forward passes; the fitting itself takes about as long
WALKS = 12  # of the images, by all detectors together: fitting, then diagnoses
FEWEST, MOST = 100, 600  # images to fit on
SHORT = {
    "cycles": 2,
    "cycle_steps": 100,
}  # of introspection: its training takes as long for few images


def inputs_of(text: str, known: Known) -> CalibrationInputs:
    """What `load_inputs` gives for a config's text, from what is loaded already; checked, its layers tried.

    Raises:
        AskanceError: a calibration by this config would be refused.
    """
    try:
        config = Config.model_validate(tomllib.loads(text))
    except ValidationError as error:
        raise ConfigError(explain(error, Config)) from None
    pools = shuffled(known.pools, config.data.seed)
    for fault in split_faults(config.splits, pools):
        raise DataError(fault)
    splits = sliced(config.splits, pools)
    classes = splits["fit"].classes  # or what stands in for them
    inputs = checked(CalibrationInputs.of(config, known.classifier, known.weights, splits, classes))
    new_detectors(inputs)
    return inputs


def rehearse(inputs: CalibrationInputs) -> tuple[int, dict[str, Any]]:
    """Fit every detector on some images of `fit`; doubts are said.

    Args:
        inputs: of the calibration to be.

    Returns:
        How many images, and {detector: its diagnoses, on some images of `evaluate`}.
    """
    images = max(FEWEST, min(MOST, round(SECONDS / WALKS / seconds_per_image(inputs))))
    fitted = len(inputs.splits["fit"])
    splits = {name: split[:images] for name, split in inputs.splits.items()}
    settings = inputs.settings
    if "introspection" in settings.detectors.wanted():
        settings = settings.model_copy(update={"detectors": settings.detectors.replaced("introspection", **SHORT)})
    few = replace(inputs, settings=settings, splits=splits)
    found: dict[str, Mapping[str, Any]] = {}
    detectors = new_detectors(few)
    for kind, detector in detectors.items():
        detector.settle(inputs.sample("fit", images, detector), fitted)
        held_out = few.stream("held_out", detector) if "held_out" in splits else None
        detector.fit(few.stream("fit", detector), held_out).eval()
        found[kind] = detector.diagnose(few.stream("fit", detector), few.stream("evaluate", detector))
    found = {kind: figures for kind, figures in found.items() if figures}
    doubts(few, detectors, found)
    return min(images, fitted), dict(found)
