"""Recalibration: the same classifier and detectors, with conformal tables from recent clean traffic."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from askance.answers import FUSED
from askance.calibration.benign import BENIGN_IMAGES, LEARNED, PROMISED, Benign, benign_readings, of_both
from askance.calibration.exporting import graphs_of
from askance.calibration.images import Images, require_shape
from askance.calibration.scoring import score
from askance.calibration.sources import load_source
from askance.classifiers import trusting
from askance.detectors import Bundle, Screen
from askance.detectors.publishing import publish, refuse_existing
from askance.detectors.reader import TorchReader
from askance.errors import CalibrationError
from askance.judgement import Calibration, Fusion, Readings
from askance.judgement.arrays import Floats
from askance.judgement.conformal import p_value

MOST_TIMES = 10.0  # as many flagged ADVERSARIAL as promised, which may still be drift
CHANCE = 1.63  # of Kolmogorov and Smirnov: two samples of one distribution differ by more in 1% of all cases
SEED = 0  # of the sharing out
BATCH = 100  # images per forward pass


@dataclass(frozen=True)
class Shift:
    """How recent images differ from those that a table was made of.

    Attributes:
        flagged: the share of them that the old table flags, by level.
        distance: the greatest difference between the two shares of scores up to any value, in [0, 1]: Kolmogorov and
            Smirnov's.
        by_chance: the distance that the same images would reach by chance in 1% of all cases.
    """

    flagged: Mapping[str, float]
    distance: float
    by_chance: float


def recalibrate(
    bundle: Bundle, source: str, out: Path, *, allowed_factories: Collection[str] = (), force: bool = False
) -> dict[str, Shift]:
    """Publish a bundle like another one, with tables from other clean images: half for each of `calibrate` and `fuse`.

    The trained opinions of the fused score, and the figures of the evaluation, are the old bundle's.

    Args:
        bundle: the old one.
        source: of the images, as a config spells it; labels play no part.
        out: where the new one goes; must not exist.
        allowed_factories: what builds the classifier and may be imported for that.
        force: take images that look like attacks.

    Returns:
        The shift of each detector, of the fused score, and of each reason.

    Raises:
        CalibrationError: the images are too few, or more than MOST_TIMES as many of them are flagged ADVERSARIAL as the
            old tables promise of clean ones.
        AskanceError: the bundle, the images or `out` cannot be used.
    """
    refuse_existing(out)
    build = trusting(allowed_factories)
    entry, old = bundle.manifest.classifier, bundle.calibration()
    images = load_source(source, entry.preprocessing)
    require_shape(images, entry.preprocessing)
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))]
    with closing(bundle.screen(build)) as screen:
        bundle.sentinels().prove(screen)
        readings, benign = _read(screen, images)
    shifts = _shifts(old, readings)
    flagged, promised = shifts[FUSED].flagged["adversarial"], old.levels.adversarial
    if flagged > MOST_TIMES * promised and not force:
        raise CalibrationError(
            f"{flagged:.1%} of the {len(images)} images are flagged ADVERSARIAL, of clean ones it would be "
            f"{promised:.1%}: more than {MOST_TIMES:g} times as many may be attacks, which new tables would take for "
            "clean; look at them, and add --force if they are none"
        )
    half = len(images) // 2
    provenance = bundle.manifest.provenance
    attacked = bundle.tensors(bundle.manifest.sentinels)["attacked"]
    publish(
        out,
        classifier={name: getattr(entry, name) for name in _CLASSIFIER},
        weights=bundle.tensors(entry),
        detectors=screen.reader.detectors,
        calibration=_calibration(old, readings, benign, half),
        build=build,
        clean=images.x[:half],
        attacked=attacked,
        export=graphs_of,
        evaluation=bundle.evaluation().as_json(),
        summary=bundle.manifest.evaluation,
        provenance={
            **provenance,
            "recalibrated": {
                "from": bundle.manifest.id,
                "source": source,
                "images": len(images),
                "sha256": images.digest(),
                "forced": force,
                "shift": {name: asdict(shift) for name, shift in shifts.items()},
            },
        },
    )
    return shifts


_CLASSIFIER = ("name", "factory", "arguments", "layers", "preprocessing", "class_names", "output")


def _read(screen: Screen[TorchReader], images: Images) -> tuple[Readings, Benign]:
    """What the detectors read of the images; and of either half mildly changed, where the old tables know of that."""

    def read(part: Images, pixels: Tensor | None = None) -> Readings:
        return score(screen.reader, part, "read", BATCH, pixels).readings

    readings, half = read(images), len(images) // 2
    answers = torch.from_numpy(readings.predicted)
    count = BENIGN_IMAGES if screen.calibration.fused.fusion.background.benign.shape[1] else 0
    one, other = (
        benign_readings(images[rows], answers[rows], count, read, stays)
        for rows, stays in ((slice(half), LEARNED), (slice(half, None), PROMISED))
    )
    return readings, of_both(one, other)


def _shifts(old: Calibration, readings: Readings) -> dict[str, Shift]:
    scores = {**readings.scores, **old.fused.fusion.scores(readings)}
    tables = {**old.tables, **old.judged}
    found = {}
    for name, table in tables.items():
        p = p_value(scores[name], table)
        n, m = len(table), len(p)
        found[name] = Shift(
            {level: float((p <= alpha).mean()) for level, alpha in old.levels.items()},
            distance(table, scores[name]),
            CHANCE * math.sqrt((n + m) / (n * m)),
        )
    return found


def distance(one: Floats, other: Floats) -> float:
    """The greatest difference between two empirical distribution functions, [n], [m] -> in [0, 1]."""
    one, other = np.sort(one.astype(np.float64)), np.sort(other.astype(np.float64))
    places = np.concatenate([one, other])
    shares = [np.searchsorted(values, places, side="right") / len(values) for values in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


def _calibration(old: Calibration, readings: Readings, benign: Benign, half: int) -> Calibration:
    """Tables of the first half for the detectors, of the second for the fused scores, with the old opinions."""

    def with_old_opinions(fusion: Fusion) -> Fusion:
        fused = [old.fused.fusion] + ([] if old.single_pass is None else [old.single_pass.fusion])
        same = next(one for one in fused if one.names == fusion.names)
        return Fusion(fusion.background, same.weights, same.biases)

    single = set() if old.single_pass is None else {name.partition("/")[0] for name in old.single_pass.fusion.names}
    return Calibration.fit(
        readings.where(slice(half)),
        readings.where(slice(half, None)),
        old.levels,
        benign=benign,
        viewers=[] if old.single_pass is None else [name for name in old.tables if name not in single],
        train=with_old_opinions,
    )
