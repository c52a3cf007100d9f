"""The plan of a calibration, said before it begins: its stages, about how long they take, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from askance.calibration.attacks import Attack
from askance.calibration.benign import mild_changes
from askance.calibration.config import Settings
from askance.calibration.inputs import CalibrationInputs
from askance.calibration.ladder import BUDGETS, SMALLEST, ladder
from askance.calibration.pace import in_words, seconds_per_image
from askance.detectors import DETECTORS, Detector
from askance.errors import listed

WALKS = 3  # of the fit split for each detector: settling, fitting, diagnosing
GRADIENT = 3  # forward passes that one with its gradient takes as long as
TRAINING_SECONDS = 20.0  # of what trains networks of its own, whatever the images
TRAINS = "introspection"


def plan(inputs: CalibrationInputs, detectors: Mapping[str, Detector]) -> list[str]:
    """Lines for people; the time is rough, from one batch of images."""
    settings = inputs.settings
    evaluation = settings.evaluation
    sizes = {name: len(images) for name, images in inputs.splits.items()}
    read = ("calibrate", "fuse", "evaluate")
    rungs = ladder(dict.fromkeys(BUDGETS, SMALLEST), 1) if evaluation.ladder else evaluation.seen
    attacks = (*rungs, *evaluation.attacks)
    names = ["the ladder"] * evaluation.ladder + [one.name for one in (*evaluation.seen, *evaluation.attacks)]
    pace = seconds_per_image(inputs)
    views = sum(detector.views(inputs.splits["fit"][:1].pixels()).shape[1] for detector in _viewers(detectors))
    of_attacks = pace * sum(_passes(one, evaluation.attacked_images) for one in attacks)
    total = (
        pace * (sizes["fit"] * WALKS * len(detectors) + (2 + views) * sum(sizes[name] for name in read))
        + of_attacks
        + pace * (1 + views) * 2 * len(mild_changes()) * evaluation.benign_images
        + TRAINING_SECONDS * (TRAINS in detectors)
    )
    rows = [
        f"fit {listed(list(detectors))} on {sizes['fit']} images",
        "read " + ", ".join(f"{name} {sizes[name]}" for name in read),
        f"attack up to {evaluation.attacked_images} images each: {listed(names)} (about {in_words(of_attacks)})",
    ]
    others = [one.name for one in evaluation.controls] + [one.name for one in evaluation.out_of_distribution]
    if others:
        rows.append(f"read controls and other images: {listed(others)}")
    rows.append("diagnostics, figures, sentinels, graphs, bundle")
    lines = [f"{settings.name}: {len(rows)} stages, about {in_words(total)} here"]
    lines += [f"  {i}. {row}" for i, row in enumerate(rows, 1)]
    return lines + [f"  left out: {one}" for one in left_out(settings, sizes)]


def left_out(settings: Settings, sizes: Mapping[str, int]) -> list[str]:
    """What a calibration by these settings goes without, and what follows from it."""
    absent = [kind for kind in DETECTORS if kind not in settings.detectors.wanted()]
    lines = [f"{listed(absent)}, without a section"] if absent else []
    if TRAINS in settings.detectors.wanted() and "held_out" not in sizes:
        lines.append("held_out: the error estimator learns from fit, too sure where the classifier was trained on it")
    if not settings.evaluation.seen_kinds:
        lines.append("seen attacks: the fused score is untrained")
    return lines


def _viewers(detectors: Mapping[str, Detector]) -> Sequence[Detector]:
    return [detector for detector in detectors.values() if detector.view_layers]


def _passes(attack: Attack, images: int) -> float:
    """Forward passes, about, that an attack takes: its steps by its own options."""
    each = 1.0
    for option in ("steps", "searches", "samples", "rounds"):
        each *= getattr(attack, option, 1)
    return each * (attack.images or images) * (GRADIENT if attack.needs_gradients else 1)
