"""The report of a calibration: its page, and beside it the plain data that the page can be drawn from again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pydantic import ValidationError

from askance.answers import Answer
from askance.calibration.curves import curves
from askance.calibration.evaluation import Evidence
from askance.calibration.files import png
from askance.drawing.explained import page as explained_page
from askance.drawing.page import page
from askance.drawing.still import still
from askance.errors import BundleError
from askance.evaluation import Evaluation
from askance.inside.curves import Curves
from askance.inside.data import Inside, Part, Wandering
from askance.judgement import Levels
from askance.screening.bundle import INSIDE, REPORT, SealedBundle
from askance.screening.images import Pixels

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


def explained(
    bundle: SealedBundle, image: Pixels, answer: Answer, words: Sequence[str], wandering: Wandering, *, as_file: bool
) -> bytes:
    """A page of one image that a bundle has screened and explained, or a PNG file of it.

    Args:
        bundle: it.
        image: float32 [C, H, W] in [0, 1].
        answer: explained.
        words: what is said of it, a line each.
        wandering: where it goes.
        as_file: draw a PNG file.

    Raises:
        BundleError: the bundle has no data of its inside: an earlier askance made it.
    """
    inside = _read(bundle, INSIDE, Inside)
    if as_file:
        return still(answer, words, image, inside, wandering)
    return explained_page(answer, words, png(image), inside, wandering).encode()


def _read(bundle: SealedBundle, name: str, kind: type[PartT]) -> PartT:
    if name not in bundle.manifest.files:
        raise BundleError(f"{bundle.path} has no {name}, from which its report is drawn: calibrate it again")
    try:
        return kind.model_validate_json(bundle.content(name))
    except ValidationError:
        raise BundleError(f"{bundle.path}: its {name} holds something else: calibrate it again") from None
