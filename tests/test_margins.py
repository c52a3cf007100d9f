"""An image's answer is a function of the image alone, also of one that was searched for to lie on a threshold."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from service_support import noise, tiny_screen
from torch import Tensor

from askance.answers import Answer, Screening
from askance.detectors.screen import Screen

PAIRS, BATCHES = 20, 12
SAID = tuple[str, str, tuple[str, ...], tuple[tuple[str, ...], ...]]


def said(answer: object) -> SAID:
    """What anybody sees of an answer but its p-values: class, verdict, flags."""
    assert isinstance(answer, Answer)
    screening = answer.screening
    assert isinstance(screening, Screening)
    assert answer.prediction is not None
    return (
        answer.prediction.label,
        str(answer.verdict),
        screening.fused.flags,
        tuple(word.flags for word in screening.detectors),
    )


def alone(screen: Screen, image: Tensor) -> SAID:
    (answer,) = screen(image[None])
    return said(answer)


def searched(screen: Screen) -> Iterator[Tensor]:
    """Both sides of thresholds, found by bisection between pairs of images to the last bit of a float."""
    generator = torch.Generator().manual_seed(0)
    images = torch.stack([torch.from_numpy(noise(seed)).float() / 255 for seed in range(PAIRS)])
    others = (torch.rand(images.shape, generator=generator) > 0.5).float()
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


def changes(screen: Screen) -> tuple[int, int]:
    """Of how many tries in batches of others an answer was another than alone; and how many tries."""
    generator = torch.Generator().manual_seed(1)
    mates = torch.stack([torch.from_numpy(noise(seed)).float() / 255 for seed in range(100, 160)])
    changed = tried = 0
    for image in searched(screen):
        expected = alone(screen, image)
        for count in torch.randint(1, 40, (BATCHES,), generator=generator).tolist():
            batch = mates[torch.randint(0, len(mates), (count,), generator=generator)]
            at = int(torch.randint(0, count + 1, (1,), generator=generator))
            answers = screen(torch.cat([batch[:at], image[None], batch[at:]]))
            changed += said(answers[at]) != expected
            tried += 1
    return changed, tried


def test_searched_images_are_judged_alike_alone_and_among_others() -> None:
    changed, tried = changes(tiny_screen())
    assert tried > 100
    assert changed == 0


def test_without_margins_the_search_finds_images_that_others_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else that it finds none with them says nothing."""
    monkeypatch.setattr(Screen, "_undecided", lambda _, logits, *__: torch.zeros(len(logits), dtype=torch.bool))
    changed, _ = changes(tiny_screen())
    assert changed > 0
