"""Fixtures: the classifiers that are screened, their images, and detectors fitted to them in little time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from askance.calibration.config import DataConfig, load_config
from askance.calibration.data import load_pools
from askance.calibration.images import Images, ImageStream
from askance.calibration.paths import data_root
from askance.classifiers import build_classifier, load_weights
from askance.detectors import (
    DETECTORS,
    Capture,
    Constellation,
    ConstellationOptions,
    Detector,
    Inputs,
    Introspection,
    IntrospectionOptions,
    LibraryNetwork,
    LibraryNetworkOptions,
    Options,
    Screen,
    SelfOrganizingMap,
    SelfOrganizingMapOptions,
    SemanticSignature,
    SemanticSignatureOptions,
    Tap,
    tap_for,
)
from askance.detectors.reader import TorchReader, read
from askance.errors import DataError
from askance.judgement import Calibration
from askance.screening.preprocessing import Preprocessing

CLASSES = 10
BATCH = 500  # images of one forward pass while fitting, the default of calibration
BATCH_WITH_VIEWS = 25  # images of a forward pass that have views beside them
MNIST = Path(__file__).resolve().parent.parent / "configs" / "mnist.toml"
# Training decides how well a detector scores, not how fast.
BRIEFLY = {Introspection.kind: {"cycles": 1, "cycle_steps": 50}, SelfOrganizingMap.kind: {"epochs": 2}}


@dataclass(frozen=True)
class Network:
    """A classifier to benchmark.

    Attributes:
        name: for people.
        factory: its name among the example classifiers.
        preprocessing: its input.
        features, readout: its last two layers; without trained weights the second is made to tell classes apart.
        weights: trained, under ASKANCE_DATA if relative.
        source: of real images.
        options: of the detectors, by kind.
    """

    name: str
    factory: str
    preprocessing: Preprocessing
    features: str
    readout: str
    weights: Path
    source: str
    options: Mapping[str, Options]

    def detectors(self) -> dict[str, Detector]:
        """Unfitted; random numbers stand for word vectors, whose values cost no time."""
        words = torch.randn(CLASSES, 25, generator=torch.Generator().manual_seed(0))
        inputs = Inputs(self.preprocessing.shape, tuple(f"class {i}" for i in range(CLASSES)), words)
        return {
            kind: DETECTORS[kind].create(options.model_copy(update=BRIEFLY.get(kind, {})), inputs)
            for kind, options in self.options.items()
        }


def lenet() -> Network:
    """LeNet as configs/mnist.toml has it."""
    config = load_config(MNIST)
    return Network(
        name="LeNet",
        factory=config.classifier.factory,
        preprocessing=config.classifier.preprocessing,
        features="relu3",
        readout="fc2",
        weights=config.classifier.weights,
        source=config.data.source,
        options=config.detectors.wanted(),
    )


def resnet44() -> Network:
    """ResNet44 with the library paper's taps, its first set of thresholds and k = 8."""
    layers = ("conv1", "layer1", "layer2", "layer3", "linear")
    return Network(
        name="ResNet44",
        factory="resnet44",
        preprocessing=Preprocessing(
            channels=3, height=32, width=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        ),
        features="pool",
        readout="linear",
        weights=Path("resnet44_cifar10.safetensors"),
        source="npz:cifar10_test.npz",
        options={
            LibraryNetwork.kind: LibraryNetworkOptions(
                thresholds=dict(zip(layers, (0.24, 0.72, 0.58, 0.62, 0.94), strict=True)), neighbors=8
            ),
            # 74 numbers; layer3 alone has 4096
            Introspection.kind: IntrospectionOptions(hidden_layers=("pool", "linear")),
            SelfOrganizingMap.kind: SelfOrganizingMapOptions(map_layers=layers),
            SemanticSignature.kind: SemanticSignatureOptions(semantic_layers=layers),
            Constellation.kind: ConstellationOptions(
                displacement_layers=("layer1", "layer3.0", "layer3"),
                noise_views=8,  # as in configs/cifar10.toml
                seed=0,
            ),
        },
    )


@dataclass(frozen=True)
class Fixture:
    """A classifier, its images and its fitted Screen.

    Attributes:
        network: what it is.
        data: in words, where images and weights come from.
        classifier: in eval mode, under the Screen's hooks.
        images: those that no detector was fitted on, uint8 [N, C, H, W].
        fitted_on: the Captures that the detectors were fitted on.
        screen: fitted and calibrated, of the single-pass detectors.
        with_views: the same and the constellation.
        seconds: that fitting took.
    """

    network: Network
    data: str
    classifier: nn.Module
    images: Tensor
    fitted_on: Sequence[Capture]
    screen: Screen[TorchReader]
    with_views: Screen[TorchReader]
    seconds: float

    def bare_classifier(self) -> nn.Module:
        """A copy of the classifier without the Screen's hooks."""
        return build_classifier(self.network.factory, {}, self.classifier.state_dict())

    @property
    def rows(self) -> dict[str, int]:
        """Stored rows of each layer's library."""
        library_network = self.screen.reader.detectors[LibraryNetwork.kind]
        assert isinstance(library_network, LibraryNetwork)
        return library_network.sizes()

    @property
    def row_megabytes(self) -> float:
        """The libraries' size in memory, 10^6 bytes: what one look-up reads."""
        state = self.screen.reader.detectors[LibraryNetwork.kind].state_dict()
        size: int = sum(tensor.nbytes for name, tensor in state.items() if name.endswith(".rows"))
        return size / 1e6


def fit(network: Network, fit_images: int, calibration_images: int) -> Fixture:
    """Fit and calibrate every detector of a network, on real images where ASKANCE_DATA has them, else on random ones.

    The Captures stay in memory: this is for some thousand images.

    Raises:
        AskanceError: the real images or weights cannot be read, or are too few.
    """
    start = time.perf_counter()
    count = fit_images + 3 * calibration_images
    real = data_root() is not None
    classifier, images = _trained(network, count) if real else _random(network, count)
    everything = network.detectors()
    detectors = {kind: detector for kind, detector in everything.items() if not detector.view_layers}
    ends = fit_images, fit_images + calibration_images, fit_images + 2 * calibration_images
    with tap_for(classifier, detectors.values(), network.preprocessing.normalize) as tap:
        fitted_on = list(ImageStream(tap, images[:fit_images], BATCH))
    with tap_for(classifier, everything.values(), network.preprocessing.normalize) as tap:
        calibrate, fuse = (
            list(ImageStream(tap, images[first:last], BATCH_WITH_VIEWS)) for first, last in pairwise(ends)
        )
    for detector in everything.values():
        detector.fit(calibrate if detector.view_layers else fitted_on).eval()

    def screen(chosen: Mapping[str, Detector]) -> Screen[TorchReader]:
        tables = Calibration.fit(read(chosen, calibrate), read(chosen, fuse))
        reader = TorchReader(classifier, chosen, network.preprocessing)
        return Screen(reader, network.preprocessing, images.classes, chosen, tables)

    return Fixture(
        network=network,
        data=f"{network.source}, trained weights" if real else "random images, random weights (ASKANCE_DATA is unset)",
        classifier=classifier,
        images=images.x[-calibration_images:],
        fitted_on=fitted_on,
        screen=screen(detectors),
        with_views=screen(everything),
        seconds=time.perf_counter() - start,
    )


def _trained(network: Network, count: int) -> tuple[nn.Module, Images]:
    root = data_root()
    assert root is not None
    classifier = build_classifier(network.factory, {}, load_weights(root / network.weights))
    images = load_pools(DataConfig(source=network.source))["train"]
    if len(images) < count:
        raise DataError(f"{network.source} has {len(images)} images, {count} are needed: lower --fit-images")
    return classifier, images[:count]


@torch.no_grad()
def _random(network: Network, count: int) -> tuple[nn.Module, Images]:
    """Smooth noise, random weights but for a read-out that tells the first ten images apart, and what it answers.

    Every class then occurs among the predictions, without which the detectors could not be fitted.
    """
    preprocessing = network.preprocessing
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, preprocessing.channels, 7, 7, generator=generator)
    noise = F.interpolate(coarse, size=(preprocessing.height, preprocessing.width), mode="bilinear")
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    x = ((noise * deviation + mean).clamp(0, 1) * 255).to(torch.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = build_classifier(network.factory, {})
    readout = classifier.get_submodule(network.readout)
    assert isinstance(readout, nn.Linear)
    with Tap(classifier, [network.features], preprocessing.normalize) as tap:

        def run() -> Capture:
            parts = [tap(part.float() / 255) for part in x.split(BATCH)]
            features = torch.cat([part.flat(network.features) for part in parts])
            return Capture(torch.cat([part.logits for part in parts]), {network.features: features})

        features = run().flat(network.features)
        # The nearest of the first ten: argmin ||f - c_k|| = argmax (c_k - m) f - ||c_k||^2 / 2 + const, any m.
        centers, middle = features[:CLASSES], features.mean(dim=0)
        readout.weight.copy_(centers - middle)
        readout.bias.copy_(-(0.5 * ((centers - middle) ** 2).sum(dim=1) + (centers - middle) @ middle))
        labels = run().predicted
    return classifier, Images(x, labels, tuple(f"class {i}" for i in range(CLASSES)))


NETWORKS: tuple[Callable[[], Network], ...] = (lenet, resnet44)
