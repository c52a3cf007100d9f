"""The commands that train classifiers: an example one, and any that is to stand attacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from askance.arguments import ConfigArgument, JsonOption

if TYPE_CHECKING:
    from askance.hardening import Strength


def train(
    config: ConfigArgument,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace weights that are there.")] = False,
    checkpoints: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also keep the weights of each epoch, for askance figures."),
    ] = None,
    permuted_labels: Annotated[
        bool,
        typer.Option(
            "--permuted-labels", help="Learn permuted labels, by heart, and keep the weights of each epoch alone."
        ),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training.")] = False,
) -> None:
    """Train one of the example classifiers and write its weights where CONFIG says."""
    from askance.calibration.config import load_config
    from askance.calibration.training import memorise
    from askance.calibration.training import train as train_classifier
    from askance.output import console

    if permuted_labels:
        if checkpoints is None:
            raise typer.BadParameter("--permuted-labels: name a folder for the weights, --checkpoints FOLDER")
        with _kept_when_interrupted(f"train {config} --permuted-labels --checkpoints {checkpoints}"):
            learned = memorise(load_config(config), checkpoints, resume=resume)
        console.print(
            f"learned {learned['learned']:.2%} of {learned['train_images']} permuted labels; accuracy "
            f"{learned['accuracy']:.2%} on {learned['test_images']} unseen images; weights in {checkpoints}"
        )
        return
    again = f"train {config}{' --overwrite' if overwrite else ''}"
    with _kept_when_interrupted(again if checkpoints is None else f"{again} --checkpoints {checkpoints}"):
        result = train_classifier(load_config(config), overwrite=overwrite, checkpoints=checkpoints, resume=resume)
    console.print(
        f"trained on {result['train_images']} images; accuracy {result['accuracy']:.2%} "
        f"on {result['test_images']} unseen ones; weights in {result['weights']}"
    )


def harden(
    config: ConfigArgument,
    out: Annotated[
        Path, typer.Option("--out", metavar="WEIGHTS", help="Where they go, a .safetensors file; must not exist.")
    ],
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training.")] = False,
    json: JsonOption = None,
) -> None:
    """Train the classifier of CONFIG by images that are attacked as it learns, as its section [hardening] says, and
    write its weights; and what it stands, beside what it stood.
    """
    from askance.calibration.config import load_config
    from askance.hardening import harden as harden_classifier
    from askance.output import also_as_json, console

    loaded = load_config(config)
    with _kept_when_interrupted(f"harden {config} --out {out}"):
        found = harden_classifier(loaded, out, resume=resume)
    with also_as_json(json, found.model_dump(mode="json")):
        if found.before is not None:
            _say_strength("before", found.before)
        _say_strength("hardened", found.after)
        named = "" if loaded.classifier.weights.resolve() == out.resolve() else f"name them in {config}, and "
        console.print(
            f"weights in {out}: {named}calibrate anew, for the detectors' layers are others now",
            soft_wrap=True,
            markup=False,
        )


@contextmanager
def _kept_when_interrupted(command: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"askance: finished epochs are kept: go on with askance {command} --resume", err=True)
        raise


def _say_strength(which: str, found: Strength) -> None:
    from askance.output import console

    accuracy, robust = found.accuracy, found.robust
    gap = ", ".join(f"{layer} {share:.2f}" for layer, share in found.gap.items())
    console.print(
        f"{which}: accuracy {accuracy.share:.1%} ({accuracy.low:.1%} to {accuracy.high:.1%}); within "
        f"{found.epsilon:.3g} PGD and Auto-PGD leave {robust.share:.1%} ({robust.low:.1%} to {robust.high:.1%}) of "
        f"{found.images} images right, and PGD moves activations by {gap}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
