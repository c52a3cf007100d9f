"""Sentinels: images kept in a bundle with the answers that they got, which tell whether it still works."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, Self

import torch
from torch import Tensor, nn

from askance.answers import FUSED, Answer, Verdict
from askance.detectors.manifest import Expected
from askance.detectors.reader import TorchReader
from askance.detectors.screen import Screen
from askance.errors import AskanceError, BundleError, ScreenError, one_line
from askance.judgement.calibration import SINGLE_PASS
from askance.judgement.conformal import reach, threshold

MOST_IMAGES = 16  # of each kind, clean and attacked: one batch
MOST_BYTES = 2 * 1024 * 1024  # of each kind; one clean image is kept whatever its size
BATCH = 2 * MOST_IMAGES
ROUNDING = (1e-5, 1e-4, *(1e-3,) * 8)  # by which all layers' inputs are altered, once each; TF32 rounds to 5e-4
STILL = 0.02  # of a score's spread on clean images, the most that this may move it
TOLERANCE = 0.05  # of the same, the most that a sentinel's score may differ from the one recorded
MOST_MOVED = 1 / 8  # of the sentinels, that may be further off: scores have steps, and rounding may cross one
MARGIN = 0.1  # of the same, the least that its fused score is away from a threshold
LEAST = 1e-6  # where a score has no spread


@dataclass(frozen=True)
class Sentinels:
    """Images and the answers to be expected of a bundle's Screen.

    Attributes:
        images: float32 [N, C, H, W] in [0, 1]; N may be 0.
        expected: N answers.
        fused: which of the fused scores the Screen goes by.
    """

    images: Tensor
    expected: tuple[Expected, ...]
    fused: str = FUSED

    @classmethod
    def none(cls, shape: tuple[int, int, int]) -> Self:
        """No images at all: of a Screen it is only tried whether it can answer."""
        return cls(torch.empty(0, *shape), ())

    @classmethod
    def read(
        cls, tensors: Mapping[str, Tensor], expected: tuple[Expected, ...], shape: tuple[int, int, int], fused: str
    ) -> Self:
        """From a bundle's file, as `choose` gave its tensors.

        Raises:
            BundleError: the file holds something else.
        """
        clean, attacked = tensors.get("clean"), tensors.get("attacked")
        if (
            clean is None
            or attacked is None
            or len(tensors) > 2
            or clean.dtype != torch.uint8
            or attacked.dtype != torch.float32
            or clean.shape[1:] != shape
            or attacked.shape[1:] != shape
            or len(clean) + len(attacked) != len(expected)
            or max(len(clean), len(attacked)) > MOST_IMAGES
        ):
            raise BundleError("its sentinels are not the images that the manifest tells of: calibrate again")
        return cls(torch.cat([clean.float() / 255, attacked]), expected, fused)

    @torch.no_grad()
    def prove(self, screen: Screen) -> None:
        """Screen them in one batch, and judge the answers; without sentinels, a black image, and its answer counts not.

        Raises:
            BundleError: the classifier or a detector fails, or an answer is not the one expected; the message begins
                with what the bundle does.
        """
        images = self.images if self.expected else torch.zeros(1, *screen.preprocessing.shape)
        try:
            answers = screen(images.to(screen.device))
        except AskanceError as error:
            raise BundleError(f"cannot screen an image: {error}") from None
        except Exception as error:
            raise BundleError(f"cannot screen an image: {one_line(error)}") from error
        if not self.expected:
            return
        spreads, pairs = _spreads(screen, self.fused), list(zip(answers, self.expected, strict=True))
        misjudged = [fault for one, expected in pairs if (fault := _misjudged(one, expected, self.fused)) is not None]
        moved = [fault for one, expected in pairs if (fault := _moved(one, expected, self.fused, spreads)) is not None]
        if misjudged or len(moved) > MOST_MOVED * len(pairs):
            wrong = [*misjudged, *moved]
            raise BundleError(
                f"answers {len(wrong)} of its {len(pairs)} sentinel images otherwise than when it was calibrated "
                f"(the first: {wrong[0]}): its weights, or what computes with them, have changed; calibrate again on "
                "this machine"
            )


def _misjudged(answer: Answer | ScreenError, expected: Expected, fused: str) -> str | None:
    """How class or verdict differ; None where they do not."""
    if isinstance(answer, ScreenError):
        return str(answer)
    assert answer.prediction is not None
    if answer.prediction.label != expected.label:
        return f"{answer.prediction.label!r} in place of {expected.label!r}"
    if answer.verdict != expected.verdicts.get(fused):
        return f"{answer.verdict} in place of {expected.verdicts.get(fused, 'none')}"
    return None


def _moved(answer: Answer | ScreenError, expected: Expected, fused: str, spreads: Mapping[str, float]) -> str | None:
    """How a score differs, of an answer that is otherwise the one expected; None where none does."""
    if isinstance(answer, ScreenError) or _misjudged(answer, expected, fused) is not None:
        return None
    for name, score in _scores(answer, fused).items():
        was = expected.scores.get(name, float("nan"))
        if not abs(score - was) <= TOLERANCE * spreads[name] + LEAST:
            return f"{name} {score:.4g} in place of {was:.4g}"
    return None


def _scores(answer: Answer, fused: str) -> dict[str, float]:
    """Every score of an answer, the fused one under the name `fused`."""
    assert answer.screening is not None
    scores = {word.name: word.score for word in answer.screening.detectors}
    return scores | {fused: answer.screening.fused.score}


def _spreads(screen: Screen, fused: str) -> dict[str, float]:
    """How far apart clean scores are: from the first to the last hundredth of each table."""
    tables = {**screen.calibration.tables, fused: screen.calibration.fused.table}
    return {name: float(reach(values, len(values) // 100)) for name, values in tables.items()}


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
        spreads, table = _spreads(screen, fused), screen.calibration.fused.table
        limits = [threshold(table, alpha) for _, alpha in screen.calibration.levels.items()]
        steady = {}
        for i, answer in enumerate(_answers(screen, pixels)):
            if isinstance(answer, ScreenError) or answer.prediction is None or answer.verdict is None:
                continue
            scores = _scores(answer, fused)
            if all(abs(scores[fused] - limit) >= MARGIN * spreads[fused] + LEAST for limit in limits):
                steady[i] = Expected(label=answer.prediction.label, verdicts={fused: answer.verdict}, scores=scores)
        for draw, scale in enumerate(ROUNDING):
            rows = list(steady)
            with _rounded(screen.reader.tap.module, scale, draw):
                moved = dict(zip(rows, _answers(screen, pixels[rows]), strict=True))
            steady = {i: one for i, one in steady.items() if _still(one, moved[i], fused, spreads)}
        found = steady if fused == FUSED else _both(found, steady)
    return found


def _still(one: Expected, moved: Answer | ScreenError, fused: str, spreads: Mapping[str, float]) -> bool:
    if isinstance(moved, ScreenError) or moved.prediction is None or moved.prediction.label != one.label:
        return False
    return all(abs(score - one.scores[name]) <= STILL * spreads[name] for name, score in _scores(moved, fused).items())


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


def _answers(screen: Screen, pixels: Tensor) -> list[Answer | ScreenError]:
    return [answer for part in pixels.split(BATCH) if len(part) for answer in screen(part)]


def _in_turns(labels: Mapping[int, str]) -> list[int]:
    """Positions, one of each label in turn."""
    by_label: dict[str, list[int]] = {}
    for i, label in labels.items():
        by_label.setdefault(label, []).append(i)
    rounds: Sequence[tuple[int | None, ...]] = list(zip_longest(*by_label.values()))
    return [i for i in chain.from_iterable(rounds) if i is not None]
