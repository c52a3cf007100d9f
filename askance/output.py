"""Output: tables for people, JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from askance.answers import FUSED, JUDGED, SCORER_OF, Answer, Verdict, said_of
from askance.errors import DataError, listed, printable
from askance.evaluation import Evaluation
from askance.explained import in_words
from askance.screening.bundle import NO_GRAPH, SealedBundle
from askance.service.client_messages import ServiceError
from askance.writing import write_whole

if TYPE_CHECKING:
    from askance.calibration.layers import Layer
    from askance.calibration.recalibration import Shift
    from askance.demo import DemoFigures

# Piped output is for other programs: never wrapped to a terminal's width.
console = Console(width=None if sys.stdout.isatty() else 240, highlight=False)
_COLOURS = {
    Verdict.CLEAN: "green",
    Verdict.SUSPECT: "yellow",
    Verdict.ADVERSARIAL: "red",
    Verdict.UNSCREENED: "bold",
    Verdict.BLOCKED: "red",
}


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write `content` to `path`, if there is one.

    Raises:
        FileError: the file cannot be written.
    """
    if path is None:
        return
    write_whole(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


@contextmanager
def also_as_json(path: Path | None, content: Mapping[str, Any]) -> Iterator[None]:
    """A block that prints what is in `content`; neither is lost for the other's sake."""
    try:
        yield
    finally:
        write_json(path, content)


def print_evaluation(evaluation: Evaluation) -> None:
    """The detection tables of an evaluation, and the flag rates beside their targets."""
    classifier = evaluation.classifier
    console.print(f"\nclassifier: accuracy {classifier.accuracy:.2%} on {classifier.images} evaluation images")
    for figures, title in (
        (evaluation.auroc, "AUROC on successful attacks"),
        (evaluation.tpr_at_fpr_5, "true-positive rate at 5% false positives"),
        (evaluation.tpr_at_fpr_1, "true-positive rate at 1% false positives"),
    ):
        if figures:
            console.print(_by_attack(evaluation, figures, title))
    if evaluation.attacks and not evaluation.auroc:
        tried = ", ".join(f"{name} 0 of {row.attempted}" for name, row in evaluation.attacks.items())
        console.print(f"no attack succeeded ({tried}): there is nothing to detect, and no figure of it", soft_wrap=True)
    console.print(_flag_rates(evaluation))
    if set(SCORER_OF.values()) <= set(evaluation.scorers):
        console.print(_flagged_by_reason(evaluation))


def _by_attack(evaluation: Evaluation, figures: Mapping[str, Mapping[str, float]], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("attack", no_wrap=True)
    table.add_column("successful", justify="right", no_wrap=True)
    others = [name for name in next(iter(figures.values())) if name not in evaluation.scorers]
    for name in (*evaluation.scorers, *others):
        table.add_column(_stacked(name), justify="right")
    for attack, row in evaluation.attacks.items():
        of_attack = figures.get(attack, {})
        cells = (f"{of_attack[name]:.3f}" if name in of_attack else "-" for name in (*evaluation.scorers, *others))
        table.add_row(attack, f"{row.successful} of {row.attempted}", *cells)
    return table


def _stacked(name: str) -> str:
    """A scorer's name, a word a line: there can be more scorers than fit side by side."""
    return name.replace("_", "\n")


def _flag_rates(evaluation: Evaluation) -> Table:
    table = Table(title="share of clean images, and of controls, flagged", title_justify="left")
    table.add_column("images", no_wrap=True)
    table.add_column("level", no_wrap=True)
    table.add_column("target", justify="right")
    for scorer in evaluation.scorers:
        table.add_column(_stacked(scorer), justify="right")
    others = {**evaluation.controls, **evaluation.out_of_distribution}
    sets = {"clean": evaluation.detector_clean_flag_rate} | {
        name: row.flag_rate for name, row in others.items() if row.flag_rate
    }
    for images, rates in sets.items():
        for level, target in evaluation.target_flag_rate.items():
            shares = (of_scorer[level] for of_scorer in rates.values())
            # a target is a promise for clean images only
            table.add_row(images, level, f"{target:.1%}" if images == "clean" else "", *(f"{s:.1%}" for s in shares))
    return table


def _flagged_by_reason(evaluation: Evaluation) -> Table:
    """What kind of suspicion clean images and successful attacks meet."""
    table = Table(title="share flagged by reason: clean images, successful attacks", title_justify="left")
    table.add_column("images", no_wrap=True)
    for reason in SCORER_OF:
        for level in evaluation.target_flag_rate:
            table.add_column(f"{reason}\n{level}", justify="right")
    sets = {"clean": evaluation.detector_clean_flag_rate} | {
        name: row.flag_rate for name, row in evaluation.attacks.items() if row.flag_rate
    }
    for images, rates in sets.items():
        shares = (rates[one][level] for one in SCORER_OF.values() for level in evaluation.target_flag_rate)
        table.add_row(images, *(f"{share:.1%}" for share in shares))
    return table


def print_diagnostics(diagnostics: Mapping[str, Any]) -> None:
    """Each detector's own readings, a table per detector."""
    for detector, content in diagnostics.items():
        scalars = {name: value for name, value in content.items() if not isinstance(value, Mapping)}
        for name, value in scalars.items():
            console.print(f"{detector}: {name.replace('_', ' ')} {value:.4g}")
        if "layers" in content:
            rows: Mapping[str, Mapping[str, float]] = content["layers"]
            table = Table(title=detector, title_justify="left")
            table.add_column("layer")
            for name in next(iter(rows.values())):
                table.add_column(name.replace("_", " "), justify="right")
            for layer, values in rows.items():
                table.add_row(layer, *(f"{value:.4g}" for value in values.values()))
            console.print(table)


def print_shifts(shifts: Mapping[str, Shift]) -> None:
    """How far recent images are from those of the old tables, a line per detector."""
    table = Table(title="recent images by the old tables", title_justify="left")
    levels = list(next(iter(shifts.values())).flagged)
    for column in ("detector", *(f"flagged ({level})" for level in levels), "distance", "by chance"):
        table.add_column(column, justify="left" if column == "detector" else "right")
    for name, shift in shifts.items():
        shares = (f"{shift.flagged[level]:.1%}" for level in levels)
        table.add_row(name, *shares, f"{shift.distance:.3f}", f"{shift.by_chance:.3f}")
    console.print(table)


def layer_rows(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """What `print_layers` shows, JSON-ready: `shape` is of what a layer gives for one image, `taps` what can tap it, or
    why nothing can.
    """
    return [
        {
            "layer": one.name,
            "class": one.kind,
            "shape": list(one.shape),
            "width": one.width,
            "depth": one.depth,
            "taps": one.taps,
            "usable": not one.fault,
        }
        for one in layers
    ]


def print_layers(layers: Sequence[Layer]) -> None:
    """A line per layer, in the order given."""
    table = Table()
    for column in ("layer", "class", "gives", "width", "depth", "taps"):
        table.add_column(column, justify="right" if column in ("width", "depth") else "left", overflow="fold")
    for one in layers:
        shape = " x ".join(map(str, one.shape))
        cells = (one.name, one.kind, shape or "-", f"{one.width:,}" if shape else "-", f"{one.depth:.0%}", one.taps)
        table.add_row(*map(escape, cells))
    console.print(table)


def print_demo(figures: DemoFigures) -> None:
    """The demo's tables, an example of each kind of images, and the latency."""
    print_evaluation(figures.evaluation)
    table = Table(title="verdicts over gRPC, and the reasons that were flagged", title_justify="left")
    table.add_column("images", no_wrap=True)
    for column in (*JUDGED, *SCORER_OF):
        table.add_column(column, justify="right", no_wrap=True)
    for name, verdicts in figures.verdicts.items():
        total = sum(verdicts.values())
        counts = (*verdicts.values(), *figures.reasons[name].values())
        table.add_row(name, *(f"{count} ({count / total:.0%})" if total else "0" for count in counts))
    console.print(table)
    for name, line in figures.examples.items():
        console.print(f"{name}, the first that is not CLEAN: {line}", soft_wrap=True, markup=False)
    latency = figures.latency_ms
    console.print(f"latency of one request: p50 {latency['p50']:.2f} ms, p99 {latency['p99']:.2f} ms")


def verdict_rows(
    images: Sequence[Path],
    answers: Iterable[Answer | ServiceError],
    failed: Mapping[int, DataError],
    class_names: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """One JSON-ready row per image: the answer, or the error it met.

    Args:
        images: the files.
        answers: for those that could be read, in their order.
        failed: why the others could not, by position; known at the latest when a later image's answer comes.
        class_names: in the order of the probabilities, where the answers are to be explained in words, too.
    """
    rows: list[dict[str, Any]] = []

    def skip_failed() -> None:
        while len(rows) in failed:
            rows.append({"image": str(images[len(rows)]), "error": str(failed[len(rows)]), "code": "NOT_FOUND"})

    for answer in answers:
        skip_failed()
        row: dict[str, Any] = {"image": str(images[len(rows)])}
        if isinstance(answer, ServiceError):
            rows.append(row | {"error": str(answer), "code": answer.code.name})
        else:
            words = {"words": in_words(answer, class_names)} if class_names else {}
            rows.append(row | answer.as_dict() | words)
    skip_failed()
    return rows


def error_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What went wrong, each thing once, with the images that it befell."""
    befell: dict[str, list[str]] = {}
    for row in rows:
        if "error" in row:
            befell.setdefault(row["error"], []).append(row["image"])
    return [
        error if error.startswith(images[0]) else f"{listed(list(dict.fromkeys(images)))}: {error}"
        for error, images in befell.items()
    ]


def print_verdicts(rows: Sequence[Mapping[str, Any]], *, explain: bool) -> None:
    """A line per image, then the reasons of those that are flagged, and what each detector saw if asked for; why one
    failed is for `error_lines` to say.
    """
    table = Table()
    for column in ("image", "prediction", "probability", "verdict", "p-value", "flagged by"):
        table.add_column(column, justify="right" if column in ("probability", "p-value") else "left")
    for row in rows:
        if "error" in row:
            table.add_row(row["image"], "-", "-", "[bold]not screened[/bold]", "-", "-")
            continue
        flagged = ", ".join(d["name"] for d in row.get("detectors", ()) if d["flags"])
        prediction = row.get("prediction")
        table.add_row(
            row["image"],
            "-" if prediction is None else prediction["label"],
            "-" if prediction is None else f"{prediction['probability']:.4f}",
            _coloured(row.get("verdict")),
            f"{row['p_value']:.4g}" if "p_value" in row else "-",
            flagged or "-",
        )
    console.print(table)
    for row in rows:
        if flagged := said_of((one["name"], one["p_value"]) for one in row.get("reasons", ()) if one["flags"]):
            console.print(f"{row['image']}: {flagged}", soft_wrap=True, markup=False)
    if explain:
        for row in rows:
            for line in row.get("words", ()):
                console.print(f"{row['image']}: {line}", soft_wrap=True, markup=False)


def _coloured(verdict: str | None) -> str:
    if verdict is None:  # the server keeps it
        return "-"
    colour = _COLOURS[Verdict(verdict)]
    return f"[{colour}]{verdict}[/{colour}]"


def print_proof(bundle: SealedBundle) -> None:
    """What the sentinels of a bundle were answered, once they were."""
    verdicts = [one.verdicts[FUSED] for one in bundle.manifest.sentinels.expected]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in JUDGED if verdict in verdicts)
    line = f"{len(verdicts)} images answered as at calibration ({counts})" if verdicts else "none: nothing was proved"
    console.print(f"{'sentinels':12}{line}")


def print_bundle(bundle: SealedBundle) -> None:
    """What a verified bundle says of itself."""
    manifest = bundle.manifest
    entry, calibration = manifest.classifier, manifest.calibration
    channels, height, width = entry.preprocessing.shape
    lines = {
        "bundle": f"{manifest.id} (intact: {len(manifest.files)} files verified)",
        "created": manifest.created,
        "classifier": f"{entry.name} ({entry.factory or 'no factory'}), weights {entry.sha256[:12]}",
        "input": f"{channels} x {height} x {width}, other sizes: {entry.preprocessing.resize}",
        "classes": ", ".join(entry.class_names),
        "layers": ", ".join(entry.layers),
        "calibration": f"{calibration.samples} clean images, fused score {calibration.fusion_samples}",
        "levels": ", ".join(f"{name} {alpha:.1%}" for name, alpha in calibration.levels.items()),
    }
    engine = "its graph, by ONNX Runtime" if manifest.graphs is not None else "torch alone"
    if why := manifest.provenance.get(NO_GRAPH):
        engine += f" ({why})"
    lines["computed by"] = engine
    took = manifest.provenance.get("seconds")
    if isinstance(took, dict):
        lines["made in"] = ", ".join(f"{seconds} s {stage}" for stage, seconds in took.items())
    packages = sorted({f"{one.package.name} {one.package.version}" for one in manifest.detectors if one.package})
    if packages:
        lines["packages"] = ", ".join(packages)
    for name, line in lines.items():
        console.print(f"{name:12}{printable(line)}", soft_wrap=True, markup=False)
    table = Table(title="detectors", title_justify="left")
    for column in ("detector", "flags above (suspect)", "flags above (adversarial)", "tensors"):
        table.add_column(column, justify="left" if column == "detector" else "right")
    files = {detector.kind: detector.file for detector in manifest.detectors}
    for name, thresholds in calibration.thresholds.items():
        size = f"{manifest.files[files[name]].size / 1e6:.2f} MB" if name in files else "-"
        table.add_row(name, f"{thresholds['suspect']:.4g}", f"{thresholds['adversarial']:.4g}", size)
    console.print(table)
    if "auroc" in manifest.evaluation:
        fused = {attack: row[FUSED] for attack, row in manifest.evaluation["auroc"].items() if FUSED in row}
        line = ", ".join(f"{attack} {figure:.3f}" for attack, figure in fused.items()) or "no attack succeeded"
        console.print(f"fused AUROC: {printable(line)}", soft_wrap=True, markup=False)
