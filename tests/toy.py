"""What several tests share: Captures by hand, a digits classifier, and everything that is fitted to it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from askance.answers import Answer, DetectorVerdict, Prediction, Reason, Screening, Verdict
from askance.calibration.weighing import learn_weights
from askance.classifiers import DigitsCNN
from askance.detectors import (
    Capture,
    Constellation,
    ConstellationOptions,
    Detector,
    Introspection,
    IntrospectionOptions,
    LibraryNetwork,
    LibraryNetworkOptions,
    Screen,
    SelfOrganizingMap,
    SelfOrganizingMapOptions,
    SemanticSignature,
    SemanticSignatureOptions,
    Tap,
    tap_for,
)
from askance.detectors.reader import TorchReader, read
from askance.errors import ScreenError
from askance.judgement import Calibration, Fusion, Readings
from askance.judgement.arrays import Floats
from askance.screening.preprocessing import Preprocessing

LAYERS = ("conv1", "relu2", "pool", "fc1", "fc2")
SPLITS = {"train": (0, 900), "calibrate": (900, 1200), "fuse": (1200, 1500), "evaluate": (1500, 1797)}
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def capture_of(
    activations: Mapping[str, Tensor], predicted: Sequence[int], classes: int, labels: Sequence[int] | None = None
) -> Capture:
    """A Capture whose predicted classes are given."""
    kind = next(iter(activations.values())).dtype
    logits = 5.0 * F.one_hot(torch.tensor(predicted), classes).to(kind)
    return Capture(logits, dict(activations), None if labels is None else torch.tensor(labels))


def readings_of(
    components: Mapping[str, Floats | Tensor], two_sided: Iterable[str] = (), logits: Floats | Tensor | None = None
) -> Readings:
    """Readings without scores, in float32; where no logits are given, the classifier is equally sure of one class."""
    count = len(next(iter(components.values())))
    if logits is None:
        logits = np.tile([5.0, 0.0], (count, 1))
    values = {name: np.asarray(one, dtype=np.float32) for name, one in components.items()}
    return Readings({}, values, frozenset(two_sided), np.asarray(logits, dtype=np.float32))


def split(capture: Capture, sizes: Sequence[int]) -> list[Capture]:
    """Consecutive pieces of a Capture."""
    assert sum(sizes) == len(capture)
    return [capture.select(rows) for rows in torch.arange(len(capture)).split(list(sizes))]


@dataclass(frozen=True)
class Whole:
    """An Answer that has everything, flat."""

    index: int
    label: str
    probabilities: tuple[float, ...]
    verdict: Verdict
    fused: DetectorVerdict
    detectors: tuple[DetectorVerdict, ...]
    reasons: tuple[Reason, ...]

    @property
    def probability(self) -> float:
        return self.probabilities[self.index]


def whole(answer: object) -> Whole:
    """An Answer with a prediction and a screening."""
    assert isinstance(answer, Answer), answer
    assert answer.prediction is not None
    assert answer.verdict is not None
    assert answer.screening is not None
    said, screening = answer.prediction, answer.screening
    words = screening.fused, screening.detectors, screening.reasons
    return Whole(said.index, said.label, said.probabilities, answer.verdict, *words)


def answered(answers: Iterable[Answer | ScreenError]) -> list[tuple[Prediction, Verdict, Screening]]:
    """The parts of answers that are whole."""
    parts = []
    for answer in answers:
        assert not isinstance(answer, ScreenError)
        assert answer.prediction is not None
        assert answer.verdict is not None
        assert answer.screening is not None
        parts.append((answer.prediction, answer.verdict, answer.screening))
    return parts


def auroc(clean: Tensor, suspicious: Tensor) -> float:
    """P(suspicious > clean) + P(equal) / 2."""
    above = (suspicious[:, None] > clean[None, :]).double().mean()
    equal = (suspicious[:, None] == clean[None, :]).double().mean()
    return float(above + equal / 2)


@dataclass
class Trained:
    """A digits classifier, its data in disjoint splits, and what was fitted."""

    classifier: DigitsCNN
    images: Tensor
    labels: Tensor
    detectors: dict[str, Detector] = field(default_factory=dict)
    calibration: Calibration | None = None

    def part(self, name: str) -> tuple[Tensor, Tensor]:
        start, end = SPLITS[name]
        return self.images[start:end], self.labels[start:end]

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(channels=1, height=8, width=8, mean=(0.3,), std=(0.4,))

    def screen(self) -> Screen[TorchReader]:
        assert self.calibration is not None
        reader = TorchReader(self.classifier, self.detectors, self.preprocessing)
        return Screen(reader, self.preprocessing, NAMES, self.detectors, self.calibration)

    def captures(self, name: str, size: int = 128) -> list[Capture]:
        images, labels = self.part(name)
        viewer = new_constellation()
        with (
            torch.no_grad(),
            Tap(self.classifier, LAYERS, self.preprocessing.normalize, viewer.views, viewer.view_layers) as tap,
        ):
            return [tap(x, y) for x, y in zip(images.split(size), labels.split(size), strict=True)]

    def copy(self) -> Trained:
        return copy.deepcopy(self)

    def attack(self, images: Tensor, labels: Tensor, epsilon: float, steps: int) -> Tensor:
        """Projected gradient descent in pixel space."""
        attacked = images.clone()
        for _ in range(steps):
            attacked.requires_grad_(True)
            loss = F.cross_entropy(self.classifier(self.preprocessing.normalize(attacked)), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, attacked)
            step = epsilon if steps == 1 else 2.5 * epsilon / steps
            attacked = attacked.detach() + step * gradient.sign()
            attacked = torch.maximum(torch.minimum(attacked, images + epsilon), images - epsilon).clamp(0, 1)
        return attacked


def train_digits() -> Trained:
    """DigitsCNN on 900 of scikit-learn's digits: about two seconds."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(3))
    images = (torch.tensor(data.images, dtype=torch.float32) / 16).unsqueeze(1)[order]
    labels = torch.tensor(data.target, dtype=torch.long)[order]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = DigitsCNN()
        trained = Trained(classifier, images, labels)
        x, y = trained.part("train")
        x = trained.preprocessing.normalize(x)
        optimizer = torch.optim.Adam(classifier.parameters(), lr=3e-3)
        for _ in range(10):
            for rows in torch.randperm(len(x)).split(32):
                optimizer.zero_grad()
                F.cross_entropy(classifier(x[rows]), y[rows]).backward()
                optimizer.step()
    classifier.eval()
    return trained


def new_constellation() -> Constellation:
    """A constellation of three noisy views, a rounded and a filtered one."""
    options = ConstellationOptions(
        displacement_layers=("relu2", "fc1"), noise_views=3, noise=0.05, bit_depths=(2,), seed=0
    )
    return Constellation(options, (1, 8, 8))


def new_detectors() -> dict[str, Detector]:
    """The detectors with options for the digits, unfitted."""
    words = torch.randn(10, 12, generator=torch.Generator().manual_seed(8))
    introspection: dict[str, Any] = {"cycles": 3, "cycle_steps": 60, "latent_dimensions": 4}
    return {
        "library_network": LibraryNetwork(
            LibraryNetworkOptions(thresholds={"conv1": 0.9, "relu2": 0.8, "fc1": 0.85, "fc2": 0.9})
        ),
        "introspection": Introspection(IntrospectionOptions(hidden_layers=("fc1", "fc2"), **introspection)),
        "self_organizing_map": SelfOrganizingMap(
            SelfOrganizingMapOptions(map_layers=("relu2", "pool", "fc1", "fc2"), side=6, epochs=8)
        ),
        "semantic_signature": SemanticSignature(
            SemanticSignatureOptions(semantic_layers=("conv1", "relu2", "fc1", "fc2"), images_per_concept=20), words
        ),
        "constellation": new_constellation(),
    }


def fit_everything(trained: Trained) -> Trained:
    """Fit the detectors on `train`, tabulate on `calibrate`, the fused score on `fuse`; its one opinion is of PGD."""
    stream = trained.captures("train")
    trained.detectors = {kind: detector.fit(stream) for kind, detector in new_detectors().items()}
    calibrate, fuse = (read(trained.detectors, trained.captures(name, 1000)) for name in ("calibrate", "fuse"))
    images, labels = trained.part("calibrate")
    pixels = trained.attack(images, labels, 0.2, 20)
    with (
        torch.no_grad(),
        tap_for(trained.classifier, trained.detectors.values(), trained.preprocessing.normalize) as tap,
    ):
        attacked = read(trained.detectors, tap(pixels))
    attacked = attacked.where(attacked.predicted != labels.numpy())

    def learned(fusion: Fusion) -> Fusion:
        weights, bias = learn_weights([fusion.features(calibrate)], [fusion.features(attacked)])
        return Fusion(fusion.background, weights[None], np.array([bias]))

    trained.calibration = Calibration.fit(calibrate, fuse, viewers=["constellation"], train=learned)
    return trained
