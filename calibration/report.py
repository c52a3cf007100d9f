"""The report of a calibration: its page, and beside it the plain data that the page can be drawn from again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from askance.answers import Answer
from askance.calibration.curves import curves
from askance.calibration.evaluation import Evidence
from askance.calibration.files import png
from askance.drawing.explained import page as explained_page
from askance.drawing.page import page
from askance.errors import BundleError, DataError
from askance.evaluation import Evaluation
from askance.inside.curves import Curves
from askance.inside.data import Inside, Part
from askance.judgement import Levels
from askance.reading import given
from askance.screening.bundle import INSIDE, REPORT, SealedBundle
from askance.screening.images import MAX_PIXELS, decode

PAGE, CURVES = f"{REPORT}index.html", f"{REPORT}curves.json"
PartT = TypeVar("PartT", bound=Part)


def report(title: str, evaluation: Evaluation, evidence: Evidence, levels: Levels, inside: Inside) -> dict[str, bytes]:
    """The report's files, {relative path: content}.

    Args:
        title: of what is guarded.
        evaluation: of `calibration.evaluation.evaluate`.
        evidence: what it was computed from; curves and histograms need every score.
        levels: whose thresholds are drawn.
        inside: what goes on inside.
    """
    drawn = curves(evidence, levels)
    return {
        PAGE: page(title, evaluation, drawn, inside).encode(),
        CURVES: drawn.model_dump_json().encode(),
        INSIDE: inside.model_dump_json().encode(),
    }


def redrawn(bundle: SealedBundle) -> str:
    """A bundle's page, drawn anew from its data.

    Raises:
        BundleError: it has no such data: an earlier askance made it.
    """
    return page(
        bundle.manifest.classifier.name,
        bundle.evaluation(),
        _read(bundle, CURVES, Curves),
        _read(bundle, INSIDE, Inside),
    )


def explained(bundle: SealedBundle, image: Path, answer: Answer, words: Sequence[str]) -> str:
    """A page of one image that a bundle has screened and explained.

    Raises:
        BundleError: the bundle has no data of its inside: an earlier askance made it.
        DataError: the file is no image.
    """
    shown = decode(given(image, DataError), bundle.manifest.classifier.preprocessing, MAX_PIXELS)
    return explained_page(answer, words, png(shown), _read(bundle, INSIDE, Inside))


def _read(bundle: SealedBundle, name: str, kind: type[PartT]) -> PartT:
    if name not in bundle.manifest.files:
        raise BundleError(f"{bundle.path} has no {name}, from which its report is drawn: calibrate it again")
    try:
        return kind.model_validate_json(bundle.content(name))
    except ValidationError:
        raise BundleError(f"{bundle.path}: its {name} holds something else: calibrate it again") from None
