"""Batch mates: whether images searched to lie on a threshold are judged among others as alone.

`python -m benchmarks.batch_mates BUNDLE --source SOURCE`: for each pair of images, bisection between one and the other
finds the two neighbouring floats between which the answer changes; both are then screened among
others, time and again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import numpy as np
import torch
import typer
from torch import Tensor

from askance.answers import Answer
from askance.calibration.attacks import FGSM, PixelClassifier, perturb
from askance.calibration.progress import say
from askance.calibration.sources import load_source
from askance.classifiers import build_classifier
from askance.detectors import Bundle, Screen
from askance.errors import AskanceError
from askance.output import console

MOST_MATES = 39
Said = tuple[str, str, tuple[tuple[str, ...], ...]]


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        searched: images on a threshold.
        tried: batches that one of them was screened in.
        changed: of these, where its answer was another than alone.
        changed_without: the same where no image is judged twice.
        twice: share of ordinary images that are judged twice for it.
    """

    searched: int
    tried: int
    changed: int
    changed_without: int
    twice: float


def said(answer: object) -> Said:
    """What anybody sees of an answer but its p-values: class, verdict, flags."""
    assert isinstance(answer, Answer)
    assert answer.prediction is not None
    assert answer.screening is not None
    flags = [reason.flags for reason in answer.screening.reasons]
    flags += [word.flags for word in answer.screening.detectors]
    return answer.prediction.label, str(answer.verdict), tuple(flags)


def alone(screen: Screen, image: Tensor) -> Said:
    """What is said of an image by itself, [C, H, W]."""
    (answer,) = screen(image[None])
    return said(answer)


def searched(screen: Screen, images: Tensor, others: Tensor) -> Iterator[Tensor]:
    """Both sides of a threshold between each image and its other, to the last bit of a float; none where both are
    answered alike. Each [N, C, H, W].
    """
    for one, other in zip(images, others, strict=True):
        low, high, here = 0.0, 1.0, alone(screen, one)
        if here == alone(screen, other):
            continue
        for _ in range(50):
            middle = (low + high) / 2
            if alone(screen, torch.lerp(one, other, middle)) == here:
                low = middle
            else:
                high = middle
        yield from (torch.lerp(one, other, low), torch.lerp(one, other, high))


def changes(screen: Screen, images: Sequence[Tensor], mates: Tensor, batches: int) -> int:
    """How often, of `batches` each, an image's answer among others is another than alone."""
    generator = torch.Generator().manual_seed(1)
    changed = 0
    for image in images:
        expected = alone(screen, image)
        for count in torch.randint(1, MOST_MATES + 1, (batches,), generator=generator).tolist():
            batch = mates[torch.randint(0, len(mates), (count,), generator=generator)]
            at = int(torch.randint(0, count + 1, (1,), generator=generator))
            answers = screen(torch.cat([batch[:at], image[None], batch[at:]]))
            changed += said(answers[at]) != expected
    return changed


def without_margins(screen: Screen) -> AbstractContextManager[object]:
    """The screen judges no image twice."""
    return patch.object(screen, "undecided", lambda read, *_: np.zeros(len(read.logits), dtype=np.bool_))


def measure(bundle: Path, source: str, pairs: int, batches: int, epsilon: float, device: str) -> Found:
    """Search between `pairs` of images and themselves attacked, and as many and the next ones of `source`.

    Raises:
        AskanceError: the bundle or the source cannot be used.
    """
    screen = Bundle.open(bundle).screen(build_classifier).to(device)
    of_source = load_source(source, screen.preprocessing)
    images = of_source.pixels()[: 4 * pairs].to(device)
    labels = screen.reader.tap.classify(images[:pairs]).argmax(dim=1)
    fgsm = FGSM(name="fgsm", kind="fgsm", epsilon=epsilon)
    attacked = perturb(PixelClassifier(screen.reader.tap.module, screen.preprocessing), fgsm, images[:pairs], labels, 0)
    starts = torch.cat([images[:pairs], images[pairs : 2 * pairs]])
    found = list(searched(screen, starts, torch.cat([attacked, images[2 * pairs : 3 * pairs]])))
    mates = images[3 * pairs :]
    changed = changes(screen, found, mates, batches)
    with without_margins(screen):
        changed_without = changes(screen, found, mates, batches)
    return Found(len(found), batches * len(found), changed, changed_without, judged_twice(screen, images))


def judged_twice(screen: Screen, images: Tensor) -> float:
    """The share of images that are judged twice, for what may change."""
    stages: list[str] = []
    batches = images.split(32)
    for batch in batches:
        screen(batch, observe=lambda stage, _: stages.append(stage))
    return (stages.count("classify") - len(batches)) / len(images)


def main(
    bundle: Annotated[Path, typer.Argument(help="A bundle of a shipped or torchvision's classifier.")],
    source: Annotated[str, typer.Option(help="Images of its classifier's shape.")] = "sklearn:digits",
    pairs: Annotated[int, typer.Option(min=1, help="Of images, to search between; twice.")] = 60,
    batches: Annotated[int, typer.Option(min=1, help="That each image found is tried in.")] = 12,
    epsilon: Annotated[float, typer.Option(help="Of the attack that half of the pairs are made by.")] = 0.1,
    device: Annotated[str, typer.Option(help="Where the classifier and the detectors run.")] = "cpu",
) -> None:
    """Search for images on a threshold, and try whether their batch mates decide about them."""
    try:
        found = measure(bundle, source, pairs, batches, epsilon, device)
    except AskanceError as error:
        say(f"batch_mates: {error}")
        raise typer.Exit(2) from None
    for name, value in asdict(found).items():
        console.print(f"{name}: {value}", soft_wrap=True, markup=False, highlight=False)
    if found.changed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
