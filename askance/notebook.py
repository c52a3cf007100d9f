"""What a notebook shows of an answer and of a bundle: small tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from askance.answers import Answer
    from askance.detectors.manifest import Manifest

_COLOURS = {"CLEAN": "#2a7f3f", "SUSPECT": "#b8860b", "ADVERSARIAL": "#b22222", "BLOCKED": "#b22222"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table; cells are escaped here."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def answer_html(answer: Answer) -> str:
    """Prediction and verdict in a line, and each detector's word in a table."""
    said = "no prediction"
    if answer.prediction is not None:
        said = f"{answer.prediction.label} ({answer.prediction.probability:.1%})"
    verdict = "" if answer.verdict is None else answer.verdict.value
    colour = _COLOURS.get(verdict, "inherit")
    line = f"<b>{escape(said)}</b> <b style='color:{colour}'>{escape(verdict)}</b>"
    if answer.screening is None:
        return f"<div>{line} <i>{escape(answer.reason or '')}</i></div>"
    words = (*answer.screening.detectors, answer.screening.fused)
    rows = [(word.name, f"{word.score:.4g}", f"{word.p_value:.4g}", ", ".join(word.flags)) for word in words]
    return f"<div>{line}{table(('detector', 'score', 'p-value', 'flags'), rows)}</div>"


def bundle_html(manifest: Manifest) -> str:
    """What a bundle guards, and by which thresholds."""
    entry, calibration = manifest.classifier, manifest.calibration
    lines = [
        ("bundle", manifest.id[:12]),
        ("created", manifest.created),
        ("classifier", f"{entry.name} ({entry.factory})"),
        ("input", " x ".join(map(str, entry.preprocessing.shape))),
        ("classes", ", ".join(entry.class_names)),
        ("calibrated on", f"{calibration.samples} clean images, fused score on {calibration.fusion_samples}"),
    ]
    levels = dict(calibration.levels.items())
    rows = [
        (name, *(f"{thresholds[level]:.4g}" for level in levels)) for name, thresholds in calibration.thresholds.items()
    ]
    head = ("flags above", *(f"{level} ({target:.1%})" for level, target in levels.items()))
    return f"<div>{table(('', ''), lines)}{table(head, rows)}</div>"
