"""Background: what clean images look like to the detectors, and how surprising another one is beside them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from askance.detectors.conditioning import Conditioning, margins
from askance.detectors.conformal import table
from askance.detectors.margins import NOISE, around, nudged, spread
from askance.detectors.readings import Readings
from askance.detectors.surprisal import Surprisal
from askance.errors import CalibrationError, listed, printable


class Surprisals(NamedTuple):
    """-log p of B inputs' readings, float64, >= 0.

    Attributes:
        beside_clean: of every reading above, then below, among clean images, [4F, B].
        speaking: of those sides that their detectors call suspicious, the least among clean and among benignly changed
            images, [S, B].
        plain: on the same sides, of the components as they are, among clean images alone, [P, B].
        doubt: [B].
    """

    beside_clean: Tensor
    speaking: Tensor
    plain: Tensor
    doubt: Tensor


class Background(nn.Module):
    """Tables of clean readings, and of readings of images that were changed a little and by nobody's design.

    Of each of F components there are two readings: as it is, and less what the classifier's answer lets expect of it
    (`Conditioning`). One more is doubt: how little the predicted class leads the next.

    Args:
        names: of the components, in order.
        two_sided: those among them that can be untypical either way; the others point like their detector's score.
        conditioning: of the components on the answers.
        clean: sorted, float32 [2F, n]: the components, then what conditioning leaves of them.
        benign: the same of images changed benignly, [2F, m]; m may be 0.
        doubts: less the margins of the clean images, sorted, float32 [1, n].
    """

    clean: Tensor
    benign: Tensor
    doubts: Tensor
    _speaking: Tensor
    _plain: Tensor

    def __init__(
        self,
        names: tuple[str, ...],
        two_sided: frozenset[str],
        conditioning: Conditioning,
        clean: Tensor,
        benign: Tensor,
        doubts: Tensor,
    ) -> None:
        super().__init__()
        self.names = names
        self.two_sided = two_sided & set(names)
        self.conditioning = conditioning
        self.register_buffer("clean", clean)
        self.register_buffer("benign", benign)
        self.register_buffer("doubts", doubts)
        either_way = torch.ones(len(clean), dtype=torch.bool, device=clean.device)
        tolerance = 2 * NOISE * spread(clean)
        self._among_clean = Surprisal(clean, either_way, tolerance)
        self._among_benign = Surprisal(benign, either_way, tolerance) if benign.shape[1] else None
        self._doubt = Surprisal(doubts, ~either_way[:1], 2 * NOISE * spread(doubts))
        lower = torch.tensor([name in self.two_sided for name in names], device=clean.device)
        sides = torch.cat([torch.ones_like(lower.repeat(2)), lower.repeat(2)])
        as_they_are = torch.cat([torch.ones_like(lower), torch.zeros_like(lower)]).repeat(2)
        self.register_buffer("_speaking", sides.nonzero()[:, 0], persistent=False)
        self.register_buffer("_plain", (sides & as_they_are).nonzero()[:, 0], persistent=False)

    @classmethod
    def fit(cls, clean: Readings, benign: Readings | None = None) -> Background:
        """Tabulate readings of a calibration split, and of the same images benignly changed.

        Raises:
            CalibrationError: there are none, or some are not finite.
        """
        names = tuple(clean.components)
        raw = clean.stacked(names)
        table(raw)  # refuses what cannot be regressed
        conditioning = Conditioning.fit(clean.logits, raw)
        of_clean, of_benign = table(_completed(conditioning, raw, clean.logits)), raw.new_zeros(2 * len(names), 0)
        if benign is not None:
            of_benign = table(_completed(conditioning, benign.stacked(names), benign.logits)[:-1])
        return cls(names, clean.two_sided, conditioning, of_clean[:-1], of_benign, of_clean[-1:])

    @property
    def classes(self) -> int:
        """K, of the classifier that was read."""
        return self.conditioning.classes

    def only(self, names: tuple[str, ...]) -> Background:
        """The same of some of the components."""
        rows = torch.tensor([self.names.index(name) for name in names], device=self.clean.device)
        both = torch.cat([rows, rows + len(self.names)])
        conditioning = self.conditioning.only(rows)
        return Background(names, self.two_sided, conditioning, self.clean[both], self.benign[both], self.doubts)

    def values(self, readings: Readings) -> Tensor:
        """The components, what conditioning leaves of them, and doubt, float32 [2F + 1, B].

        Raises:
            CalibrationError: a component is missing.
        """
        return _completed(self.conditioning, self._raw(readings), readings.logits)

    def ends(self, readings: Readings) -> tuple[Tensor, Tensor]:
        """The same as low, and as high, as the margins of the components and of the logits allow."""
        answers = nudged(readings.logits)
        least, most = (
            torch.stack([_completed(self.conditioning, raw, logits) for logits in answers])
            for raw in around(self._raw(readings), self.clean[: len(self.names)])
        )
        return least.amin(dim=0), most.amax(dim=0)

    def _raw(self, readings: Readings) -> Tensor:
        if missing := [name for name in self.names if name not in readings.components]:
            raise CalibrationError(f"the fused score was calibrated on {printable(listed(missing))}, which nobody read")
        return readings.stacked(self.names)

    def beside_clean(self, values: Tensor) -> Tensor:
        """How surprising the readings among `values` are, above and below, among clean images, float64 [4F, B]."""
        found: Tensor = self._among_clean(values[:-1])
        return found

    def surprisals(self, values: Tensor) -> Surprisals:
        """How surprising `values` are."""
        beside = self.beside_clean(values)
        speaking = beside[self._speaking]
        if self._among_benign is not None:
            speaking = torch.minimum(speaking, self._among_benign(values[:-1])[self._speaking])
        return Surprisals(beside, speaking, beside[self._plain], self._doubt(values[-1:])[0])


def _completed(conditioning: Conditioning, raw: Tensor, logits: Tensor) -> Tensor:
    left = conditioning(logits, raw)
    return torch.cat([raw, left.to(raw.dtype), -margins(logits).to(raw.dtype).unsqueeze(0)])
