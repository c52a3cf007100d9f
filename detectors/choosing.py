"""Choosing sentinels: images whose answers another machine's rounding leaves as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from askance.answers import FUSED, Answer, Verdict
from askance.detectors.reader import TorchReader
from askance.errors import ScreenError
from askance.images import Batch
from askance.judgement.calibration import SINGLE_PASS
from askance.judgement.conformal import threshold
from askance.screening.manifest import Expected
from askance.screening.screen import Screen
from askance.screening.sentinels import LEAST, MOST_IMAGES, scores_of, spreads_of

MOST_BYTES = 2 * 1024 * 1024  # of each kind; one clean image is kept whatever its size
BATCH = 2 * MOST_IMAGES
ROUNDING = (1e-5, 1e-4, *(1e-3,) * 8)  # by which all layers' inputs are altered, once each; TF32 rounds to 5e-4
STILL = 0.02  # of a score's spread on clean images, the most that this may move it
MARGIN = 0.1  # of the same, the least that its fused score is away from a threshold


def choose(
    screens: Mapping[str, Screen[TorchReader]], clean: Tensor, attacked: Tensor
) -> tuple[dict[str, Tensor], tuple[Expected, ...]]:
    """Pick sentinels: far from the thresholds, unmoved by what another machine's rounding does, of many classes.

    Clean ones are judged clean; of the attacked ones, those that are judged adversarial come first.

    Args:
        screens: by the fused score that they go by: FUSED, and SINGLE_PASS where there is one.
        clean: candidates, uint8 [n, C, H, W].
        attacked: candidates, float32 [m, C, H, W] in [0, 1]; m may be 0.

    Returns:
        The tensors of the bundle's file, and the answers, clean images first. There may be none.
    """
    kept, expected = {}, []
    for name, candidates, verdicts, least in (
        ("clean", clean, (Verdict.CLEAN,), 1),
        ("attacked", attacked.float(), (Verdict.ADVERSARIAL, Verdict.SUSPECT, Verdict.CLEAN), 0),
    ):
        pixels = candidates.float() / 255 if candidates.dtype == torch.uint8 else candidates
        answers = _steady(screens, pixels)
        order = [
            i
            for wanted in verdicts
            for i in _in_turns({i: one.label for i, one in answers.items() if one.verdicts[FUSED] is wanted})
        ]
        each = max(1, candidates[:1].numel() * candidates.element_size())
        rows = order[: min(MOST_IMAGES, max(MOST_BYTES // each, least))]
        kept[name] = candidates[rows].contiguous()
        expected += [answers[i] for i in rows]
    return kept, tuple(expected)


def _steady(screens: Mapping[str, Screen[TorchReader]], pixels: Tensor) -> dict[int, Expected]:
    """The answers to images that can be sentinels, by position."""
    found: dict[int, Expected] = {}
    for fused, screen in screens.items():
        spreads, table = spreads_of(screen, fused), screen.calibration.fused.table
        limits = [threshold(table, alpha) for _, alpha in screen.calibration.levels.items()]
        steady = {}
        for i, answer in enumerate(_answers(screen, pixels)):
            if isinstance(answer, ScreenError) or answer.prediction is None or answer.verdict is None:
                continue
            scores = scores_of(answer, fused)
            if all(abs(scores[fused] - limit) >= MARGIN * spreads[fused] + LEAST for limit in limits):
                steady[i] = Expected(label=answer.prediction.label, verdicts={fused: answer.verdict}, scores=scores)
        for draw, scale in enumerate(ROUNDING):
            rows = list(steady)
            with _rounded(screen.reader.tap.module, scale, draw):
                moved = dict(zip(rows, _answers(screen.at_once, pixels[rows]), strict=True))
            steady = {i: one for i, one in steady.items() if _still(one, moved[i], fused, spreads)}
        found = steady if fused == FUSED else _both(found, steady)
    return found


def _still(one: Expected, moved: Answer | ScreenError, fused: str, spreads: Mapping[str, float]) -> bool:
    if isinstance(moved, ScreenError) or moved.prediction is None or moved.prediction.label != one.label:
        return False
    return all(
        abs(score - one.scores[name]) <= STILL * spreads[name] for name, score in scores_of(moved, fused).items()
    )


@contextmanager
def _rounded(classifier: nn.Module, scale: float, seed: int) -> Iterator[None]:
    """Alter what goes into each layer a little, as the arithmetic of another machine would."""
    generator = torch.Generator().manual_seed(seed)

    def alter(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            one * (1 + scale * torch.randn(one.shape, generator=generator)).to(one.dtype)
            if isinstance(one, Tensor) and one.is_floating_point()
            else one
            for one in inputs
        )

    leaves = [module for module in classifier.modules() if not list(module.children())]
    handles = [leaf.register_forward_pre_hook(alter) for leaf in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _both(whole: Mapping[int, Expected], single: Mapping[int, Expected]) -> dict[int, Expected]:
    """The answers of two Screens in one, for the images that are steady under both."""
    return {
        i: one.model_copy(
            update={
                "verdicts": one.verdicts | single[i].verdicts,
                "scores": one.scores | {SINGLE_PASS: single[i].scores[SINGLE_PASS]},
            }
        )
        for i, one in whole.items()
        if i in single
    }


def _answers(screen: Callable[[Batch], list[Answer | ScreenError]], pixels: Tensor) -> list[Answer | ScreenError]:
    return [answer for part in pixels.split(BATCH) if len(part) for answer in screen(part.numpy())]


def _in_turns(labels: Mapping[int, str]) -> list[int]:
    """Positions, one of each label in turn."""
    by_label: dict[str, list[int]] = {}
    for i, label in labels.items():
        by_label.setdefault(label, []).append(i)
    rounds: Sequence[tuple[int | None, ...]] = list(zip_longest(*by_label.values()))
    return [i for i in chain.from_iterable(rounds) if i is not None]
