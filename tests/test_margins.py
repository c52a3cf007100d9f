"""An image's answer is a function of the image alone, also of one that was searched for to lie on a threshold."""

from __future__ import annotations

import torch
from service_support import noise, tiny_screen
from torch import Tensor

from benchmarks.batch_mates import changes, judged_twice, searched, without_margins

PAIRS, BATCHES = 12, 8


def images(seeds: range) -> Tensor:
    return torch.stack([torch.from_numpy(noise(seed)).float() / 255 for seed in seeds])


def others(of: Tensor) -> Tensor:
    return (torch.rand(of.shape, generator=torch.Generator().manual_seed(0)) > 0.5).float()


def test_searched_images_are_judged_alike_alone_and_among_others() -> None:
    screen, starts = tiny_screen(), images(range(PAIRS))
    found = list(searched(screen, starts, others(starts)))
    assert len(found) > 6
    assert changes(screen, found, images(range(100, 160)), BATCHES) == 0


def test_without_margins_the_search_finds_images_that_others_decide() -> None:
    """Else that it finds none with them says nothing."""
    screen, starts = tiny_screen(), images(range(PAIRS))
    with without_margins(screen):
        found = list(searched(screen, starts, others(starts)))
        assert changes(screen, found, images(range(100, 160)), BATCHES) > 0
        assert judged_twice(screen, starts) == 0


def test_ordinary_images_are_rarely_judged_twice() -> None:
    assert judged_twice(tiny_screen(), images(range(200))) < 0.1
