"""The commands that show what goes on inside: one image explained, a bundle's report, the papers' figures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from askance.arguments import AllowOption, BundleArgument, SignatureOption


def keep(path: Path, page: bytes) -> None:
    """Write a page, which shows images and so is its owner's alone, and say where it is."""
    from askance.output import console
    from askance.writing import SECRET, write_whole

    write_whole(path, page, SECRET)
    what = "picture" if path.suffix.lower() == ".png" else "page"
    console.print(f"{what}: {path}{', for a browser' if what == 'page' else ''}", soft_wrap=True, markup=False)


def _say(lines: Iterable[str]) -> None:
    """Print lines as they are."""
    from askance.output import console

    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def explain(
    bundle: BundleArgument,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.html|FILE.png", help="Also draw a page, or a picture, of it.")
    ] = None,
    noise: Annotated[
        list[float] | None,
        typer.Option(min=0, metavar="SIGMA", help="Also 200 copies with such noise, in pixel values; repeatable."),
    ] = None,
    toward: Annotated[
        str | None,
        typer.Option(metavar="CLASS|all", help="Also the way to another class, and what error is expected on it."),
    ] = None,
    allow_factory: AllowOption = None,
    require_signature: SignatureOption = None,
) -> None:
    """Screen IMAGE with BUNDLE, here, and say in words what each detector has seen."""
    from askance.explained import in_words
    from askance.screened import ScreenedClassifier
    from askance.screening.bundle import SealedBundle

    opened = SealedBundle.open(bundle, require_signature=require_signature)
    with ScreenedClassifier(opened, allowed_factories=allow_factory or ()) as screen:
        answer = screen(image, explain=True)
        words = in_words(answer, screen.class_names)
    _say(words)
    if out is None and not noise and toward is None:
        return
    from askance.calibration import explaining

    assert answer.prediction is not None
    pixels, predicted = explaining.pixels_of(opened, image), answer.prediction.index
    targets = [] if toward is None else explaining.targets_of(opened, toward, predicted)
    wandering = explaining.wander(opened, pixels, noise or [], targets, allow_factory or ())
    _say(explaining.in_words(wandering, predicted, screen.class_names))
    if out is not None:
        from askance.calibration.report import explained

        drawn = explained(opened, pixels, answer, words, wandering, as_file=out.suffix.lower() == ".png")
        keep(out, drawn)


def report(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.html", help="Where the page goes.")] = Path("report.html"),
) -> None:
    """Draw the report of BUNDLE anew, as this askance draws it, from the figures that it holds."""
    from askance.calibration.report import redrawn
    from askance.screening.bundle import SealedBundle

    keep(out, redrawn(SealedBundle.open(bundle)).encode())


def figures(
    bundle: BundleArgument,
    paper: Annotated[
        list[str], typer.Option("--paper", metavar="000|001|002|003|004|all", help="Whose figures; repeatable.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where they go.")],
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="CONFIG", help="Images to look at [default: those of the calibration]."),
    ] = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also those over training: what askance train --checkpoints kept."),
    ] = None,
    permuted: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also that of permuted labels: what --permuted-labels kept."),
    ] = None,
    allow_factory: AllowOption = None,
    require_signature: SignatureOption = None,
) -> None:
    """Draw the figures of the source papers of BUNDLE, each with what its paper says of it and what is so here.

    000: library networks, 001: introspection, 002: neuron consistency, 003: the semantic signature, 004:
    self-organizing maps.
    """
    from askance.errors import did_you_mean
    from askance.papers import PAPERS, Study, keep_plates
    from askance.screening.bundle import SealedBundle

    wanted = list(PAPERS) if "all" in paper else list(dict.fromkeys(paper))
    if unknown := [number for number in wanted if number not in PAPERS]:
        raise typer.BadParameter(f"--paper: unknown {unknown[0]!r}: {did_you_mean(unknown[0], [*PAPERS, 'all'])}")
    study = Study(
        SealedBundle.open(bundle, require_signature=require_signature),
        config,
        checkpoints,
        permuted,
        allow_factory or (),
    )
    for number in wanted:
        folder = out / number if len(wanted) > 1 else out
        plates = keep_plates(PAPERS[number](study), folder, f"Paper {number}: {study.name}")
        _say(f"{plate.name}: {plate.verdict}: {plate.found}" for plate in plates)
        kept = f"{len(plates)} figures, as PNG and SVG, and README.md in {folder}"
        _say([f"paper {number}: {kept if plates else 'none: the bundle has no such detector, or no such layer'}"])
