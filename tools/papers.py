"""The papers, reproduced, into docs/papers.md: their own scores by python tools/papers.py mnist|cifar10 BUNDLE, what is
said of their figures by python tools/papers.py figures NAME=FOLDER..., of what `askance figures --paper all` has drawn,
and codes of several classifiers side by side by python tools/papers.py architectures NAME=BUNDLE...
"""

from __future__ import annotations

import copy
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tables import replace_section, wrapped
from torch import Tensor

from askance.calibration.images import Images
from askance.calibration.markdown import number, table
from askance.calibration.metrics import separation
from askance.calibration.progress import say
from askance.detectors import (
    Capture,
    CaptureStream,
    Introspection,
    LibraryNetwork,
    LibraryNetworkOptions,
    SelfOrganizingMap,
    SemanticSignature,
)
from askance.detectors.introspection import log_error
from askance.detectors.library import activation_pattern
from askance.detectors.short_list import ShortList
from askance.inside.codes import correlation
from askance.inside.data import Inside
from askance.inside.semantics import rivalry
from askance.papers import Study
from askance.papers.semantic_signature import led
from askance.screening.bundle import INSIDE, SealedBundle
from askance.screening.kinds.introspection import ERROR_FLOOR

PAGE = Path(__file__).resolve().parent.parent / "docs" / "papers.md"
COMPARED = 1000  # images of `evaluate`
CODE_NEIGHBORS = 20  # rows that the library network's code, as published, goes by, with a softmax
SAMPLED = (None, 2000, 500, 100)  # neurons of a layer that libraries look at
ACROSS = (500, 100, 20)  # neurons of each layer, at most, that libraries across layers look at
LONGER = 3  # times as many cycles, and as much patience
FEWEST = 20  # images, below which no AUROC is said
Draws = Mapping[str, Mapping[str, Tensor]]
"""{draw: {layer: positions of its neurons}}."""


@dataclass(frozen=True)
class Case:
    """What is reproduced on one data set.

    Attributes:
        layers: of the library networks.
        sets: thresholds, a number per layer (Lee 2019, Table 1, and its author's code).
        fit_images: of the fit split, for the libraries; None: all.
        neighbors: k.
    """

    layers: tuple[str, ...]
    sets: Mapping[str, tuple[float, ...]]
    fit_images: int | None
    neighbors: int


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
    ),
}


class Reproduction:
    """A bundle's classifier and detectors beside what the papers say of theirs."""

    def __init__(self, name: str, folder: Path) -> None:
        self.case = CASES[name]
        self.study = Study(SealedBundle.open(folder))
        self.clean = self.study.splits["evaluate"]
        self.shades = 1 if self.clean.x.shape[1] == 1 else 255
        self.learned = self.study.splits.get("held_out", self.study.splits["fit"])
        self.fooled = {budget: self.study.fooled(budget) for budget in self.study.budgets}

    def budget(self, value: float) -> str:
        """As the papers write it."""
        return f"PGD {value:g}" if self.shades == 1 else f"PGD {round(255 * value)}/255"

    def cells(self, layers: Sequence[str], score: Callable[[Any], Tensor], draws: Draws | None = None) -> list[str]:
        """AUROC by budget, with its interval and how many images it rests on; of draws of neurons, if there are any."""

        def scores(images: Images, pixels: Tensor | None = None) -> NDArray[Any]:
            parts = [score(capture) for capture in drawn(self.study.stream(layers, images, pixels), draws)]
            return torch.cat([torch.empty(0), *parts]).numpy()

        clean = scores(self.clean[:COMPARED])
        return [told(clean, scores(*fooled)) for fooled in self.fooled.values()]

    @property
    def budgets(self) -> list[str]:
        """Of PGD, as the papers write them."""
        return [self.budget(value) for value in self.fooled]


def told(clean: NDArray[Any], attacked: NDArray[Any]) -> str:
    """AUROC, its 95% interval, and how many attacked images there are; of too few only that."""
    count = f"{len(attacked)} images"
    if len(attacked) < FEWEST:
        return f"<sub>{count}</sub>"
    auroc, low, high = separation(clean.astype(np.float64), attacked.astype(np.float64))
    return f"{number(auroc)} <sub>{number(low)} to {number(high)}, {count}</sub>"


def shares(agreement: Mapping[str, Mapping[str, float]]) -> tuple[str, str, str]:
    """Rows and agreement of each layer."""
    return (
        " / ".join(str(row["rows"]) for row in agreement.values()),
        " / ".join(f"{100 * row['top1']:.1f}" for row in agreement.values()),
        " / ".join(f"{100 * row['top3']:.1f}" for row in agreement.values()),
    )


def as_its_code_has_it(detector: LibraryNetwork) -> LibraryNetwork:
    """The same libraries by the 20 most similar rows, and a softmax of the answers."""
    other = copy.deepcopy(detector)
    other.options = detector.options.model_copy(update={"neighbors": CODE_NEIGHBORS, "softmax": True})
    for one in other.layer_libraries().values():
        one.short_list = ShortList()  # made for fewer rows
    return other


HEAD = ("set", "thresholds", "rows", "agreement, top 1, %", "top 3, %")


@torch.no_grad()
def library(made: Reproduction) -> str:
    """Rows, agreement and the AUROC of CPL for every set of thresholds."""
    case, study, rows = made.case, made.study, []
    fit = study.splits["fit"][: case.fit_images]
    for name, thresholds in case.sets.items():
        say(f"library, set {name}")
        by_layer = dict(zip(case.layers, thresholds, strict=True))
        options = LibraryNetworkOptions(thresholds=by_layer, neighbors=case.neighbors)
        detector = LibraryNetwork(options).fit(study.stream(case.layers, fit))
        for how, one in (("", detector), (", as its code has it", as_its_code_has_it(detector))):
            agreement = one.agreement(study.stream(case.layers, made.clean[:COMPARED]))
            theta = " ".join(f"{t:.2f}".lstrip("0") for t in thresholds)
            rows.append((f"{name}{how}", theta, *shares(agreement), *made.cells(one.layers, one.score)))
    return table((*HEAD, *(f"CPL, {budget}" for budget in made.budgets)), rows)


@torch.no_grad()
def sampling(made: Reproduction) -> str:
    """What looking at some neurons of each layer costs, in agreement and in AUROC, with the bundle's thresholds."""
    study, rows = made.study, []
    own = study.detector(LibraryNetwork)
    assert own is not None
    fit = study.splits["fit"][: made.case.fit_images]
    for count in SAMPLED:
        say(f"library, {count} neurons")
        options = own.options.model_copy(update={"sampled_neurons": count})
        detector = LibraryNetwork(options).fit(study.stream(own.layers, fit))
        agreement = detector.agreement(study.stream(own.layers, made.clean[:COMPARED]))
        rows.append((f"{count or 'all'}", *shares(agreement), *made.cells(own.layers, detector.score)))
    return table(("neurons of a layer", *HEAD[2:], *(f"CPL, {budget}" for budget in made.budgets)), rows)


@dataclass(frozen=True)
class Drawn:
    """A stream in which each draw is a layer: neurons of all layers, each layer's part of unit length."""

    stream: CaptureStream
    draws: Draws

    def __iter__(self) -> Iterator[Capture]:
        for capture in self.stream:
            joined = {
                name: torch.cat([activation_pattern(capture.flat(layer)[:, at]) for layer, at in of.items()], dim=1)
                for name, of in self.draws.items()
            }
            yield replace(capture, activations=joined)


def drawn(stream: CaptureStream, draws: Draws | None) -> CaptureStream:
    """A stream, or what is drawn of it."""
    return stream if draws is None else Drawn(stream, draws)


@torch.no_grad()
def across(made: Reproduction) -> str:
    """What libraries know that sample neurons across all layers: as many as there are layers, as large on average."""
    study, rows = made.study, []
    own = study.detector(LibraryNetwork)
    assert own is not None
    fit = study.stream(own.layers, study.splits["fit"][: made.case.fit_images])
    seen = study.stream(own.layers, made.clean[:COMPARED])
    first = next(iter(seen))
    widths = {layer: first.flat(layer).shape[1] for layer in own.layers}
    generator = torch.Generator().manual_seed(own.options.seed or 0)
    for count in ACROSS:
        say(f"libraries across layers, {count} neurons of each")
        draws = {
            f"draw {i + 1}": {at: torch.randperm(n, generator=generator)[:count] for at, n in widths.items()}
            for i in range(len(own.layers))
        }
        size = round(fmean(own.sizes().values()))
        options = LibraryNetworkOptions(
            thresholds=None, rows=size, library_layers=tuple(draws), neighbors=own.options.neighbors
        )
        detector = LibraryNetwork(options).fit(drawn(fit, draws))
        agreement = detector.agreement(drawn(seen, draws))
        rows.append((f"{count}", *shares(agreement), *made.cells(own.layers, detector.score, draws)))
    return table(("neurons of each layer", *HEAD[2:], *(f"CPL, {budget}" for budget in made.budgets)), rows)


@torch.no_grad()
def introspection(made: Reproduction) -> str:
    """The error that both estimators expect of right and wrong answers, by predicted class."""
    detector = made.study.detector(Introspection)
    assert detector is not None
    captures = list(made.study.stream(detector.layers, made.clean))
    with torch.enable_grad():
        longer = detector.with_longer_training(made.study.stream(detector.layers, made.learned), LONGER)
    estimates = [torch.cat([one.estimate_at(one.map_points(c)) for c in captures]) for one in (detector, longer)]
    of_hidden = "estimated_error" if detector.options.estimator_reads == "hidden" else "estimated_error:hidden"
    estimates.append(torch.cat([detector.components(c)[of_hidden] for c in captures]))
    predicted = torch.cat([c.predicted for c in captures])
    right = predicted == made.clean.y
    classes = [("all", torch.ones_like(right)), *((n, predicted == k) for k, n in enumerate(made.clean.classes))]
    rows = [
        (
            name,
            f"{int((where & right).sum())} / {int((where & ~right).sum())}",
            *(
                f"{float(e[where & kind].median()):.2f}" if bool((where & kind).any()) else "-"
                for e in estimates
                for kind in (right, ~right)
            ),
        )
        for name, where in classes
    ]
    ranks = [told(e[right].numpy(), e[~right].numpy()) for e in estimates]
    rows.append(("AUROC of mistakes", "", *(cell for rank in ranks for cell in ("", rank))))
    errors = torch.cat([log_error(c.logits, c.labels) for c in captures if c.labels is not None])
    floor = float((errors <= np.log10(ERROR_FLOOR) + 1e-6).double().mean())
    said = f"\n\nOf the errors that the estimators are to learn, {floor:.0%} are at the floor of {ERROR_FLOOR:g}."
    by = ("by z: right", "wrong", f"by z, learned {LONGER} times as long: right", "wrong", "by the hidden layer: right")
    head = ("predicted class", "right / wrong", *by, "wrong")
    return table(head, rows) + said


@torch.no_grad()
def maps(made: Reproduction) -> str:
    """The AUROC of each layer's BMU distance, by budget."""
    detector = made.study.detector(SelfOrganizingMap)
    assert detector is not None
    rows = []
    for layer in detector.layers:

        def score(capture: Any, name: str = f"bmu_distance:{layer}") -> Tensor:
            return detector.components(capture)[name]

        rows.append((layer, *made.cells(detector.layers, score)))
    return table(("layer", *made.budgets), rows)


@torch.no_grad()
def signature(made: Reproduction) -> str:
    """How often each layer still speaks for the true class against the target, by the target's similarity."""
    study = made.study
    detector = study.detector(SemanticSignature)
    assert detector is not None
    found = {
        rank: rivalry(detector, study.stream(detector.layers, images, pixels))
        for rank, images, pixels, _ in led(study, detector)
    }
    columns = {rank: one for rank, one in found.items() if one is not None}
    rows = [(layer, *(f"{one.shares[layer]:.0%}" for one in columns.values())) for layer in detector.layers]
    return table(("layer", *(f"rank {rank} ({one.images})" for rank, one in columns.items())), rows)


def figures(folders: Mapping[str, Path]) -> str:
    """What the papers claim of each figure, and what is so of each classifier; what the page says of others stays."""
    claims, said = _said_before()
    for name, folder in folders.items():
        for file in sorted(folder.glob("*/figures.json")):
            for one in json.loads(file.read_text()):
                key = file.parent.name, one["name"]
                claims[key] = one["claim"]
                said.setdefault(key, {})[name] = f"**{one['verdict']}**: {one['found']}."
    return "\n\n".join(
        "\n\n".join(
            [
                textwrap.fill(f"**{paper}, {name}**: {claims[paper, name]}.", 120, break_on_hyphens=False),
                "\n".join(wrapped(f"- {one}: {found}") for one, found in said[paper, name].items()),
            ]
        )
        for paper, name in sorted(said)
    )


def _said_before() -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], dict[str, str]]]:
    """What the page claims of each figure, and says of each classifier."""
    claims: dict[tuple[str, str], str] = {}
    said: dict[tuple[str, str], dict[str, str]] = {}
    (section,) = re.findall(r"<!-- figures: begin -->(.*?)<!-- figures: end -->", PAGE.read_text("utf-8"), re.DOTALL)
    for block in re.split(r"\n(?=\*\*\d{3}, )", section):
        head, *rows = re.split(r"\n(?=- )", " ".join(block.split("\n  ")).strip())
        named = re.fullmatch(r"\*\*(\d{3}), ([\w-]+)\*\*: (.*)\.", " ".join(head.split()))
        if named is None:
            continue
        key = named[1], named[2]
        claims[key] = named[3]
        for row in rows:
            name, _, found = " ".join(row.split()).removeprefix("- ").partition(": **")
            said.setdefault(key, {})[name] = f"**{found}"
    return claims, said


def architectures(bundles: Mapping[str, Path]) -> str:
    """How much each layer's codes tell of the class, and whether classes whose codes are alike are attacked easily."""
    rows = []
    for name, folder in bundles.items():
        inside = Inside.model_validate_json(SealedBundle.open(folder).content(INSIDE))
        for layer, one in inside.codes.items():
            success = inside.success
            r = None if success is None else correlation(zip(one.spreads, success.by_class, strict=True))
            tells = "-" if r is None else f"{r[0]:.2f} <sub>{r[1]:.2f} to {r[2]:.2f}</sub>"
            rows.append(
                (name, layer, number(one.information), number(one.purity), f"{one.spread:.1f} of {one.side}", tells)
            )
    head = ("classifier", "layer", "information", "purity", "spread of a class, units", "success by spread, r")
    return table(head, rows)


def main(name: str, *of: str) -> None:
    """Write every section of one data set, or what is said of figures."""
    if (whole := {"figures": figures, "architectures": architectures}.get(name)) is not None:
        pairs = (one.partition("=") for one in of)
        replace_section(PAGE, name, whole({label: Path(folder) for label, _, folder in pairs}))
        return
    (folder,) = of
    made = Reproduction(name, Path(folder))
    for part in (maps, introspection, signature, library, sampling, across):
        say(f"{name}: {part.__name__}")
        replace_section(PAGE, f"{name} {part.__name__}", part(made))


if __name__ == "__main__":
    main(*sys.argv[1:])
