"""A plate: one figure of a paper drawn of a bundle, and one sentence on it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from askance.writing import SECRET, write_whole

DOTS = 120  # an inch
MOST_NAMES = 30  # along an axis: of more layers each n-th is named


@dataclass(frozen=True)
class Plate:
    """One figure.

    Attributes:
        name: of its files.
        figure: as drawn here.
        claim: what the paper says.
        found: what is so here, in one sentence.
        holds: whether the claim holds; None where the figure claims nothing, or too little was seen to tell.
    """

    name: str
    figure: Figure
    claim: str
    found: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        """In a word."""
        return {True: "holds", False: "does not hold", None: "open"}[self.holds]

    def files(self) -> dict[str, bytes]:
        """As a picture of points, and as one of lines: {name: content}."""
        content = {}
        with mpl.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "none"}):
            for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                file = io.BytesIO()
                self.figure.savefig(file, format=kind, dpi=DOTS, metadata=metadata)
                content[f"{self.name}.{kind}"] = file.getvalue()
        return content


def keep_plates(plates: Iterable[Plate], folder: Path, title: str) -> list[Plate]:
    """Write plates as they come, and in the end what is said of them all, for people (README.md) and for programs
    (figures.json); only the owner may read them.

    Raises:
        FileError: a file cannot be written.
    """
    kept = []
    for plate in plates:
        for name, content in plate.files().items():
            write_whole(folder / name, content, SECRET)
        kept.append(plate)
    lines = [f"# {title}", ""]
    for plate in kept:
        lines += [f"![{plate.name}]({plate.name}.png)", ""]
        lines += [f"The paper: {plate.claim}. Here that **{plate.verdict}**: {plate.found}.", ""]
    write_whole(folder / "README.md", "\n".join(lines).encode(), SECRET)
    said = [{"name": p.name, "claim": p.claim, "verdict": p.verdict, "found": p.found} for p in kept]
    write_whole(folder / "figures.json", json.dumps(said, indent=1).encode(), SECRET)
    return kept


def sheet(rows: int = 1, columns: int = 1, *, width: float = 4.6, height: float = 3.8) -> tuple[Figure, list[Axes]]:
    """An empty figure of equal parts, row by row; sizes in inches, of one."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def picture(axes: Axes, image: Tensor) -> None:
    """An image, [C, H, W] in [0, 1]."""
    shown = image.numpy()
    axes.imshow(shown[0] if len(shown) == 1 else shown.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()


def along_layers(axes: Axes, layers: Iterable[str]) -> None:
    """Name layers along the lower axis."""
    names = list(layers)
    step = -(-len(names) // MOST_NAMES)
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=60, ha="right", fontsize=7)
    axes.set_xlabel("layer, in order of depth")
