"""Crafting: one attack after the other on the same images, each on what those before it have left noticed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from askance.aware.attacks import CALM, AwareAttack, run
from askance.aware.defences import BaselineDefence, Defence, FusedDefence
from askance.calibration.baselines import BASELINES
from askance.calibration.digests import tensor_digest
from askance.classifiers import build_classifier
from askance.detectors import Bundle
from askance.judgement.arrays import Doubles, Floats, Ints
from askance.judgement.calibration import SINGLE_PASS

COUNTS = 4  # numbers of an image beside its pixels


@dataclass(frozen=True)
class Crafted:
    """What attackers made of N images.

    Attributes:
        pixels: of 8 bits, [N, C, H, W]; the least suspicious ones that fool the classifier, or the image as it was.
        p_values: by the defence, float64 [N]; 0 where nothing fooled the classifier.
        attack: which of the attacks made them, int64 [N]; -1 where none.
        fooled_at, evaded_at: how many steps it took, all attacks together, int64 [N]; -1: they did not.
    """

    pixels: Tensor
    p_values: Doubles
    attack: Ints
    fooled_at: Ints
    evaded_at: Ints

    def packed(self) -> Tensor:
        """As one tensor, float64 [N, D + 4]."""
        counts = np.stack([self.p_values, self.attack, self.fooled_at, self.evaded_at], axis=1)
        return torch.cat([self.pixels.flatten(1).double(), torch.from_numpy(counts)], dim=1)

    @classmethod
    def unpacked(cls, packed: Tensor, shape: tuple[int, ...]) -> Crafted:
        """Undo `packed`, of images [C, H, W]."""
        p_values, *counts = packed[:, -COUNTS:].numpy().T
        pixels = packed[:, :-COUNTS].float().unflatten(1, shape)
        return cls(pixels, p_values, *(count.astype(np.int64) for count in counts))

    @classmethod
    def untouched(cls, images: Tensor) -> Crafted:
        """Before any attack."""
        never = np.full(len(images), -1)
        return cls(images.clone(), np.zeros(len(images)), never, never.copy(), never.copy())


def craft(
    defence: Defence, attacks: Mapping[str, AwareAttack], images: Tensor, labels: Tensor, guides: Tensor
) -> Crafted:
    """Attack images [N, C, H, W] of true classes [N], with images of other classes as guides."""
    made, taken = Crafted.untouched(images), 0
    for place, attack in enumerate(attacks.values()):
        left = np.flatnonzero(made.p_values <= CALM)
        if not len(left):
            break
        found = run(defence, attack, images[left], labels[left], guides[left])
        for steps, own in ((made.fooled_at, found.fooled_at), (made.evaded_at, found.evaded_at)):
            first = (steps[left] < 0) & (own >= 0)
            steps[left[first]] = taken + own[first]
        better = found.p_values > made.p_values[left]
        made.pixels[left[better]] = found.pixels[better]
        made.p_values[left[better]] = found.p_values[better]
        made.attack[left[better]] = place
        taken += attack.steps
    return made


@dataclass(frozen=True)
class Crafter:
    """Crafts images against any of a bundle's defences, in whatever process it is sent to.

    Attributes:
        bundle: its folder.
        bundle_id: its id.
        tables: of the baselines, their scores of clean images, sorted.
    """

    bundle: Path
    bundle_id: str
    tables: Mapping[str, Floats]
    here_only: bool = field(default=False, init=False)

    def begin(self) -> Callable[..., NDArray[Any]]:
        """Open the bundle; what takes a defence's name, attacks, images, labels and guides, and gives `packed`."""
        defences = self.defences()
        made: dict[str, Defence] = {}

        def do(name: str, attacks: Mapping[str, AwareAttack], *arrays: NDArray[Any]) -> NDArray[Any]:
            if name not in made:
                made[name] = defences[name]()
            packed: NDArray[Any] = craft(made[name], attacks, *map(torch.from_numpy, arrays)).packed().numpy()
            return packed

        return do

    def identity(self, name: str) -> list[str]:
        """What images made against one of them depend on of it."""
        tables = [tensor_digest(torch.from_numpy(self.tables[name]))] if name in self.tables else []
        return [self.bundle_id, name, *tables]

    def defences(self) -> dict[str, Callable[[], Defence]]:
        """What makes each, by name."""
        bundle = Bundle.open(self.bundle)
        classifier, preprocessing = bundle.classifier(build_classifier), bundle.manifest.classifier.preprocessing
        classifier.requires_grad_(False)
        detectors, calibration = bundle.detectors(), bundle.calibration()

        def fused() -> Defence:
            return FusedDefence(classifier, detectors, preprocessing, calibration)

        def single_pass() -> Defence:
            return FusedDefence(classifier, detectors, preprocessing, calibration.in_a_single_pass())

        def baseline(name: str) -> Callable[[], Defence]:
            return lambda: BaselineDefence(BASELINES[name](), classifier, preprocessing, self.tables[name])

        made: dict[str, Callable[[], Defence]] = {"fused": fused}
        if calibration.single_pass is not None:
            made[SINGLE_PASS] = single_pass
        return made | {name: baseline(name) for name in self.tables}
