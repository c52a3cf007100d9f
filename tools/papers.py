"""The papers' own scores, reproduced, into docs/papers.md: python tools/papers.py mnist|cifar10 BUNDLE."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tables import replace_section
from torch import Tensor

from askance.calibration.attacks import PGD
from askance.calibration.cache import attack_cache
from askance.calibration.config import load_config
from askance.calibration.data import load_splits
from askance.calibration.harness import targets
from askance.calibration.images import Images, ImageStream
from askance.calibration.markdown import number, table
from askance.calibration.metrics import detection
from askance.calibration.progress import Tracked, say
from askance.calibration.suite import AttackJob, Target, run
from askance.classifiers import build_classifier
from askance.detectors import (
    Bundle,
    Introspection,
    LibraryNetwork,
    LibraryNetworkOptions,
    SelfOrganizingMap,
    SemanticSignature,
    Tap,
)

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "papers.md"
ATTACKED = 200  # images, as the reference figures have
RANKS = (1, 3, 5, 7, 9)  # of the targets, by similarity of their words to the true class's


@dataclass(frozen=True)
class Case:
    """What is reproduced on one data set.

    Attributes:
        layers: of the library networks.
        sets: thresholds, a number per layer (Lee 2019, Table 1, and its author's code).
        fit_images: of the fit split, for the libraries; None: all.
        neighbors: k.
        budgets: of PGD, by name.
        step: of PGD.
    """

    layers: tuple[str, ...]
    sets: Mapping[str, tuple[float, ...]]
    fit_images: int | None
    neighbors: int
    budgets: Mapping[str, float]
    step: float


CASES = {
    "mnist": Case(
        ("conv1", "conv2", "fc1", "fc2"),
        {
            "1": (0.55, 0.70, 0.75, 0.80),
            "2": (0.60, 0.75, 0.80, 0.85),
            "3": (0.55, 0.65, 0.65, 0.65),
            "4": (0.55, 0.75, 0.80, 0.85),
            "5": (0.60, 0.70, 0.75, 0.75),
            "6": (0.60, 0.70, 0.80, 0.80),
            "7": (0.60, 0.70, 0.85, 0.85),
        },
        None,
        3,
        {".05": 0.05, ".1": 0.1, ".2": 0.2, ".3": 0.3},
        0.01,
    ),
    "cifar10": Case(
        ("conv1", "layer1", "layer2", "layer3", "linear"),
        {
            "1": (0.24, 0.72, 0.58, 0.62, 0.94),
            "2": (0.26, 0.72, 0.56, 0.58, 0.88),
            "3": (0.30, 0.74, 0.58, 0.60, 0.90),
            "4": (0.32, 0.76, 0.60, 0.62, 0.92),
            "5": (0.34, 0.78, 0.62, 0.64, 0.94),
            "6": (0.26, 0.72, 0.60, 0.62, 0.92),
            "7": (0.26, 0.72, 0.62, 0.64, 0.94),
            "level 0": (0.18, 0.64, 0.48, 0.50, 0.80),
            "level 1": (0.20, 0.66, 0.50, 0.52, 0.82),
            "level 2": (0.22, 0.68, 0.52, 0.54, 0.84),
            "level 3": (0.24, 0.70, 0.54, 0.56, 0.86),
            "level 4": (0.26, 0.72, 0.56, 0.58, 0.88),
            "level 5": (0.30, 0.74, 0.58, 0.60, 0.90),
            "level 6": (0.32, 0.76, 0.60, 0.62, 0.92),
            "level 7": (0.34, 0.78, 0.62, 0.64, 0.94),
        },
        10_000,
        8,
        {"2/255": 2 / 255, "4/255": 4 / 255, "8/255": 8 / 255, "16/255": 16 / 255},
        1 / 255,
    ),
}


class Study:
    """A bundle's classifier, its data, and PGD at every budget on the same images."""

    def __init__(self, name: str, bundle: Bundle) -> None:
        self.case = CASES[name]
        config = load_config(ROOT / "configs" / f"{name}.toml")
        self.splits = load_splits(config.data, config.splits, config.classifier.preprocessing)
        entry = bundle.manifest.classifier
        self.detectors = bundle.detectors()
        self.classifier = bundle.classifier(build_classifier)
        self.tap = Tap(self.classifier, [*entry.layers], entry.preprocessing.normalize)
        self.target = Target(entry.factory, entry.arguments, bundle.tensors(entry), entry.preprocessing)
        self.clean = self.splits["evaluate"]
        capture = torch.cat([c.predicted for c in self.stream(self.clean)])
        self.starts = self.clean[capture == self.clean.y][:ATTACKED]

    def stream(self, images: Images, pixels: Tensor | None = None) -> ImageStream:
        """Captures of images, or of pixels in their place."""
        return ImageStream(self.tap, images, 100, pixels)

    def pgd(self, epsilon: float, rank: int | None = None) -> Tensor:
        """PGD's images, untargeted or aimed by word similarity."""
        options = PGD(name="pgd", kind="pgd", epsilon=epsilon, step_size=self.case.step, target_rank=rank)
        labels = self.starts.y
        if rank is not None:
            signature = self.detectors[SemanticSignature.kind]
            assert isinstance(signature, SemanticSignature)
            labels = targets(signature.word_correlations, labels, rank)
        return run(self.target, [AttackJob(options, self.starts.pixels(), labels)], attack_cache())[0]


@torch.no_grad()
def library(study: Study) -> str:
    """Rows, agreement and the AUROC of CPL for every set of thresholds."""
    case, rows = study.case, []
    fit = study.splits["fit"][: case.fit_images]
    attacked = {name: study.pgd(epsilon) for name, epsilon in case.budgets.items()}
    for name, thresholds in case.sets.items():
        options = LibraryNetworkOptions(
            thresholds=dict(zip(case.layers, thresholds, strict=True)), neighbors=case.neighbors
        )
        detector = LibraryNetwork(options).fit(Tracked(study.stream(fit), f"library, set {name}"))
        agreement = detector.agreement(study.stream(study.clean[:1000]))
        scores = torch.cat([detector.score(c) for c in study.stream(study.clean[:1000])])
        cells = []
        for pixels in attacked.values():
            captures = list(study.stream(study.starts, pixels))
            wrong = torch.cat([c.predicted for c in captures]) != study.starts.y
            found = detection(scores, torch.cat([detector.score(c) for c in captures])[wrong])
            cells.append(number(found["auroc"]) if found else "")
        rows.append(
            (
                name,
                " ".join(f"{t:.2f}".lstrip("0") for t in thresholds),
                " / ".join(str(row["rows"]) for row in agreement.values()),
                " / ".join(f"{100 * row['top1']:.1f}" for row in agreement.values()),
                " / ".join(f"{100 * row['top3']:.1f}" for row in agreement.values()),
                *cells,
            )
        )
    head = ("set", "thresholds", "rows", "agreement, top 1, %", "top 3, %")
    return table((*head, *(f"CPL, PGD {name}" for name in case.budgets)), rows)


@torch.no_grad()
def introspection(study: Study) -> str:
    """The estimated error of right and wrong answers, by predicted class."""
    detector = study.detectors[Introspection.kind]
    assert isinstance(detector, Introspection)
    captures = list(study.stream(study.clean))
    estimates = torch.cat([detector.score(c) for c in captures])
    predicted = torch.cat([c.predicted for c in captures])
    right = predicted == study.clean.y
    rows = []
    for name, where in [("all", torch.ones_like(right))] + [
        (label, predicted == k) for k, label in enumerate(study.clean.classes)
    ]:
        found = [estimates[where & kind] for kind in (right, ~right)]
        rows.append(
            (name, *(f"{float(e.median()):.2f} ({len(e)})" if len(e) else "- (0)" for e in found)),
        )
    return table(("predicted class", "right: median log10 e (images)", "wrong: median log10 e (images)"), rows)


@torch.no_grad()
def maps(study: Study) -> str:
    """The AUROC of each layer's BMU distance, by budget."""
    detector = study.detectors[SelfOrganizingMap.kind]

    def distances(images: Images, pixels: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        captures = list(study.stream(images, pixels))
        parts = [detector.components(c) for c in captures]
        wrong = torch.cat([c.predicted for c in captures]) != images.y
        return {layer: torch.cat([part[f"bmu_distance:{layer}"] for part in parts]) for layer in detector.layers}, wrong

    clean, _ = distances(study.clean, None)
    columns = {}
    for name, epsilon in study.case.budgets.items():
        attacked, wrong = distances(study.starts, study.pgd(epsilon))
        found = {layer: detection(clean[layer], values[wrong]) for layer, values in attacked.items()}
        columns[name] = {layer: number(f["auroc"]) if f else "" for layer, f in found.items()}
    rows = [(layer, *(column[layer] for column in columns.values())) for layer in detector.layers]
    return table(("layer", *(f"PGD {name}" for name in columns)), rows)


@torch.no_grad()
def signature(study: Study) -> str:
    """How often each layer still speaks for the true class against the target, by the target's similarity."""
    detector = study.detectors[SemanticSignature.kind]
    assert isinstance(detector, SemanticSignature)
    strongest = list(study.case.budgets.values())[-1]
    columns = {}
    for rank in RANKS:
        pixels, aims = study.pgd(strongest, rank), targets(detector.word_correlations, study.starts.y, rank)
        captures = list(study.stream(study.starts, pixels))
        margins = torch.cat([detector.pair_margins(c) for c in captures])
        hit = torch.cat([c.predicted for c in captures]) == aims
        against = margins.gather(2, study.starts.y[:, None, None].expand(-1, margins.shape[1], 1)).squeeze(2)[hit]
        columns[f"rank {rank} ({int(hit.sum())})"] = (against < 0).double().mean(dim=0)
    rows = [
        (layer, *(f"{100 * float(c[i]):.0f}%" for c in columns.values())) for i, layer in enumerate(detector.layers)
    ]
    return table(("layer", *columns), rows)


def main(name: str, folder: str) -> None:
    """Write every section of one data set."""
    study = Study(name, Bundle.open(Path(folder)))
    for part in (maps, introspection, signature, library):
        say(f"{name}: {part.__name__}")
        replace_section(PAGE, f"{name} {part.__name__}", part(study))


if __name__ == "__main__":
    main(*sys.argv[1:3])
