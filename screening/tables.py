"""Tables: a calibration as a bundle holds it, and read back: all that was promised of it is checked again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from askance.answers import DOUBTFUL, FUSED, UNFAMILIAR
from askance.errors import BundleError
from askance.judgement import Background, Calibration, Fused, Fusion, SecondLook
from askance.judgement.arrays import Floats
from askance.judgement.calibration import SECOND_LOOK, SINGLE_PASS
from askance.judgement.conditioning import KNOTS, Conditioning
from askance.judgement.conformal import check_level, threshold
from askance.screening.manifest import CalibrationEntry, FileEntry

Arrays = Mapping[str, NDArray[Any]]

BACKGROUND = (
    *("clean", "benign", "doubts", "two_sided"),
    *(f"conditioning.{part}" for part in ("knots", "centre", "spread", "location", "scale")),
)
"""What a bundle holds of a Background."""
FUSION = {"weights": 2, "biases": 1, "offsets": 1}
"""What a bundle holds of a Fusion, by its dimensions."""
UNFAMILIAR_SINGLE_PASS = f"{UNFAMILIAR}_single_pass"
LOOKED_AT_FROM = f"{SECOND_LOOK}/threshold"
_AGAIN = "it has been altered since it was calibrated: calibrate again"


def arrays_of(calibration: Calibration) -> dict[str, NDArray[Any]]:
    """All tables and weights, by the names that a bundle has for them."""
    arrays: dict[str, NDArray[Any]] = {f"scores/{name}": values for name, values in _tables(calibration).items()}
    background = calibration.fused.fusion.background
    arrays |= {f"background/{name}": values for name, values in background.arrays().items()}
    for name, fused in _fused(calibration).items():
        arrays |= {f"{name}/{part}": getattr(fused.fusion, part) for part in FUSION}
    if calibration.second_look is not None:
        arrays[LOOKED_AT_FROM] = np.array([calibration.second_look.threshold])
    return arrays


def entry_of(calibration: Calibration, kept: FileEntry) -> CalibrationEntry:
    """What a manifest says of a calibration that is kept in a file.

    Raises:
        CalibrationError: the tables are too short for the levels.
    """
    tables = _tables(calibration)
    for level, alpha in calibration.levels.items():
        for scores in tables.values():
            check_level(alpha, scores.shape[-1], level)
    return CalibrationEntry(
        samples=min(scores.shape[-1] for scores in calibration.tables.values()),
        fusion_samples=calibration.fused.table.shape[-1],
        levels=calibration.levels,
        thresholds={
            name: {level: threshold(scores, alpha) for level, alpha in calibration.levels.items()}
            for name, scores in tables.items()
        },
        components=calibration.fused.fusion.names,
        two_sided=tuple(sorted(calibration.fused.fusion.background.two_sided)),
        single_pass=() if calibration.single_pass is None else calibration.single_pass.fusion.names,
        **kept.model_dump(include=set(FileEntry.model_fields)),
    )


def calibration_from(entry: CalibrationEntry, kinds: Sequence[str], classes: int, arrays: Arrays) -> Calibration:
    """The calibration that a manifest's entry and a file's arrays describe.

    Args:
        entry: what the manifest says of it.
        kinds: of the detectors.
        classes: K.
        arrays: as `arrays_of` gave them.

    Raises:
        BundleError: a table is missing, of another shape or type, unsorted or not finite, there is one too many, or the
            manifest says other things of them than they do.
        CalibrationError: the tables are too short for the levels.
    """
    fusions = {FUSED: entry.components} | ({SINGLE_PASS: entry.single_pass} if entry.single_pass else {})
    reasons = (UNFAMILIAR, DOUBTFUL, *((UNFAMILIAR_SINGLE_PASS,) if entry.single_pass else ()))
    again = (SECOND_LOOK,) if entry.single_pass and LOOKED_AT_FROM in arrays else ()
    _check_names(entry, (*kinds, *fusions, *reasons, *again), arrays, fusions)
    for name in (*kinds, *fusions, *reasons, *again):
        kept = (np.float32, np.float64) if name in kinds else (np.float64,)
        _check_table(f"scores/{name}", arrays, 1, kept)
    background = _background(entry, classes, arrays)

    def fused(name: str, components: tuple[str, ...]) -> Fused:
        parts = {part: arrays[f"{name}/{part}"] for part in FUSION}
        for part, dimensions in FUSION.items():
            if parts[part].ndim != dimensions or not _are_finite(parts[part]):
                raise BundleError(f"the calibration's {part} of {name} are not finite float64 numbers: {_AGAIN}")
        if len(parts["offsets"]) != classes:
            raise BundleError(f"the calibration's offsets of {name} are not one for each of {classes}: {_AGAIN}")
        unfamiliar = arrays[f"scores/{UNFAMILIAR if name == FUSED else UNFAMILIAR_SINGLE_PASS}"]
        return Fused(Fusion(background.only(components), **parts), arrays[f"scores/{name}"], unfamiliar)

    parts = {name: fused(name, components) for name, components in fusions.items()}
    calibration = Calibration(
        entry.levels,
        {kind: arrays[f"scores/{kind}"] for kind in kinds},
        parts[FUSED],
        arrays[f"scores/{DOUBTFUL}"],
        parts.get(SINGLE_PASS),
        _second_look(arrays) if again else None,
    )
    recomputed = entry_of(calibration, entry)
    for field in CalibrationEntry.model_fields:
        if getattr(recomputed, field) != getattr(entry, field):
            raise BundleError(f"the calibration's {field} in the manifest are not those of its tables: {_AGAIN}")
    return calibration


def _second_look(arrays: Arrays) -> SecondLook:
    threshold = arrays[LOOKED_AT_FROM]
    if threshold.shape != (1,) or not _are_finite(threshold):
        raise BundleError(f"the calibration's {LOOKED_AT_FROM} is not one finite float64 number: {_AGAIN}")
    return SecondLook(float(threshold[0]), arrays[f"scores/{SECOND_LOOK}"])


def _background(entry: CalibrationEntry, classes: int, arrays: Arrays) -> Background:
    """What the fused scores have in common.

    Raises:
        BundleError: a part is not of the shape that the manifest asks for, or nothing that a calibration makes.
    """
    parts = {name: arrays[f"background/{name}"] for name in BACKGROUND}
    for name in ("clean", "doubts", *(("benign",) if parts["benign"].size else ())):
        _check_table(f"background/{name}", arrays, 2, (np.float32,))
    count = len(entry.components)
    rows = {"clean": 2 * count, "benign": 2 * count, "doubts": 1}
    if any(parts[name].ndim != 2 or len(parts[name]) != expected for name, expected in rows.items()):
        raise BundleError(f"the calibration has not two tables for each of {count} components: {_AGAIN}")
    two_sided = np.array([name in entry.two_sided for name in entry.components])
    if parts["two_sided"].dtype != np.bool_ or not np.array_equal(parts["two_sided"], two_sided):
        raise BundleError(f"the calibration's two_sided in the manifest are not those of its tables: {_AGAIN}")
    coefficients = (1 + KNOTS + classes, count)
    shapes = {
        "knots": (KNOTS,),
        "centre": (count,),
        "spread": (count,),
        "location": coefficients,
        "scale": coefficients,
    }
    state = {name: parts[f"conditioning.{name}"] for name in shapes}
    for name, shape in shapes.items():
        if state[name].shape != shape or not _are_finite(state[name]):
            raise BundleError(
                f"the calibration's {name} are not finite float64 numbers of shape {list(shape)}, as {classes} classes "
                f"and {count} components want them: {_AGAIN}"
            )
    if not (state["spread"] > 0).all() or not (np.diff(state["knots"]) >= 0).all():
        raise BundleError(f"the calibration's knots or spreads are out of order: {_AGAIN}")
    return Background(
        entry.components, frozenset(entry.two_sided), Conditioning(**state), *(parts[name] for name in rows)
    )


def _are_finite(values: NDArray[Any]) -> bool:
    return values.dtype == np.float64 and bool(np.isfinite(values).all())


def _fused(calibration: Calibration) -> dict[str, Fused]:
    """The fused scores by name."""
    single = {} if calibration.single_pass is None else {SINGLE_PASS: calibration.single_pass}
    return {FUSED: calibration.fused} | single


def _tables(calibration: Calibration) -> dict[str, Floats]:
    """All conformal tables by name."""
    single = calibration.single_pass
    return {
        **calibration.tables,
        **{name: fused.table for name, fused in _fused(calibration).items()},
        **calibration.reasons,
        **({} if single is None else {UNFAMILIAR_SINGLE_PASS: single.unfamiliar}),
        **({} if calibration.second_look is None else {SECOND_LOOK: calibration.second_look.table}),
    }


def _check_names(
    entry: CalibrationEntry, tables: Sequence[str], arrays: Collection[str], fusions: Collection[str]
) -> None:
    expected = {*(f"background/{part}" for part in BACKGROUND), *(f"scores/{name}" for name in tables)}
    expected |= {f"{name}/{part}" for name in fusions for part in FUSION}
    expected |= {LOOKED_AT_FROM} if SECOND_LOOK in tables else set()
    for name in sorted(expected - set(arrays)):
        raise BundleError(f"the calibration has no table {name!r}: {_AGAIN}")
    for name in sorted(set(arrays) - expected):
        raise BundleError(f"the calibration has a table {name!r} that nothing reads: {_AGAIN}")
    for names in (tables, entry.components, entry.single_pass, entry.two_sided):
        if len(set(names)) < len(names):
            raise BundleError(f"the manifest names a detector or a component twice: {_AGAIN}")
    for names in (entry.single_pass, entry.two_sided):
        if not set(names) <= set(entry.components):
            raise BundleError(f"the manifest names a component that the fused score has not: {_AGAIN}")


def _check_table(name: str, arrays: Arrays, dimensions: int, kept: Collection[type[np.generic]]) -> None:
    values = arrays[name]
    if values.ndim != dimensions or values.dtype not in kept or values.shape[-1] == 0:
        shape = f"{values.dtype} {list(values.shape)}"
        raise BundleError(f"the calibration's table {name!r} is {shape}, expected sorted clean scores: {_AGAIN}")
    if not np.isfinite(values).all():
        raise BundleError(f"the calibration's table {name!r} holds NaN or infinity: {_AGAIN}")
    if not (np.diff(values) >= 0).all():
        raise BundleError(f"the calibration's table {name!r} is not sorted: {_AGAIN}")
