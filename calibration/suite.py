"""The attack suite: many attacks on many images, in pieces spread over the cores, each piece cached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from askance.calibration.attacks import ATTACKS, Attack, PixelClassifier, perturb
from askance.calibration.cache import ImageCache
from askance.calibration.digests import json_digest, state_digest, tensor_digest
from askance.calibration.processes import spread
from askance.classifiers import build_classifier
from askance.detectors.output import select_output
from askance.screening.preprocessing import Preprocessing

PIECE_IMAGES = 50  # batch mates share nothing but an attack's random numbers, which go by the piece


@dataclass(frozen=True)
class Target:
    """The classifier under attack, by what builds it, so that a process elsewhere can.

    Attributes:
        factory, arguments, weights: as in `classifiers.build_classifier`; without a factory only this process can
            attack it.
        preprocessing: what stands between pixels and its input.
        classifier: what stands in for a factory; None where there is one.
        output: the part of the built classifier's answer that holds the logits, if it has parts.
    """

    factory: str | None
    arguments: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    preprocessing: Preprocessing
    classifier: nn.Module | None = None
    output: str | int | None = None

    def build(self) -> PixelClassifier:
        """The classifier in pixel space."""
        if self.factory is None:
            assert self.classifier is not None
            return PixelClassifier(self.classifier, self.preprocessing)
        built = build_classifier(self.factory, self.arguments, self.weights)
        return PixelClassifier(select_output(built, self.output), self.preprocessing)

    def identity(self) -> dict[str, Any]:
        """What attacked images depend on, JSON-ready."""
        return {
            "factory": str(self.classifier) if self.factory is None else self.factory,
            "arguments": dict(self.arguments),
            "weights": state_digest(self.weights),
            "preprocessing": self.preprocessing.model_dump(mode="json", include={"mean", "std"}),
            "versions": {name: version(name) for name in ("advertorch", "foolbox", "torch")},
        } | ({} if self.output is None else {"output": self.output})


@dataclass(frozen=True)
class AttackJob:
    """One attack on its images.

    Attributes:
        attack: which.
        images: float32 [N, C, H, W] in [0, 1].
        labels: [N], the true classes, or the targets if the attack aims.
    """

    attack: Attack
    images: Tensor
    labels: Tensor

    def pieces(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(the seed, images, labels) of each piece."""
        parts = zip(self.images.split(PIECE_IMAGES), self.labels.split(PIECE_IMAGES), strict=True)
        for i, (images, labels) in enumerate(parts):
            yield self.attack.seed * 1_000_003 + i, images, labels


def run(target: Target, jobs: Sequence[AttackJob], cache: ImageCache) -> list[Tensor]:
    """Run every attack; what the cache holds is not made again, and every piece made is cached at once.

    The images do not depend on how many cores there are, nor on what was cached.

    Returns:
        The attacked images of each, float32 [N, C, H, W] in [0, 1].

    Raises:
        CalibrationError: a process that makes them was ended.
    """
    identity = target.identity()
    results: list[list[Tensor | None]] = []
    keys: dict[tuple[int, int], str] = {}
    todo: dict[tuple[int, int], tuple[Attack, Any, Any, int]] = {}
    for i, job in enumerate(jobs):
        attack = _identity(job.attack)
        results.append([])
        for j, (seed, images, labels) in enumerate(job.pieces()):
            key = json_digest({**identity, **attack, "seed": seed, "images": tensor_digest(images, labels)})
            results[i].append(cache.get(key))
            if results[i][j] is None:
                keys[i, j], todo[i, j] = key, (job.attack, images.numpy(), labels.numpy(), seed)
    for (i, j), made in spread(_Attacker(target), todo, f"attacks on {PIECE_IMAGES} images each"):
        pixels = torch.from_numpy(made)
        cache.put(keys[i, j], pixels)
        results[i][j] = pixels
    return [torch.cat([pixels for pixels in parts if pixels is not None]) for parts in results]


def _identity(attack: Attack) -> dict[str, Any]:
    """What attacked images depend on of an attack, JSON-ready: options, libraries, its package if not askance."""
    identity: dict[str, Any] = {"attack": attack.identity()}
    if attack.libraries:
        identity["libraries"] = {name: version(name) for name in attack.libraries}
    package = ATTACKS.package(attack.kind)
    return identity if package is None else identity | {"package": [package.name, package.version]}


@dataclass(frozen=True)
class _Attacker:
    """Makes pieces of attacked images."""

    target: Target

    @property
    def here_only(self) -> bool:
        return self.target.factory is None

    def begin(self) -> Callable[..., Any]:
        predict = self.target.build()

        def make(attack: Attack, images: Any, labels: Any, seed: int) -> Any:
            return perturb(predict, attack, torch.from_numpy(images), torch.from_numpy(labels), seed).numpy()

        return make
