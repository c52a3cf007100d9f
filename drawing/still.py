"""One image explained as a PNG file: the image, its place on the activation map, its profile, and the words."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from askance.answers import Answer
from askance.colours import CLEAN, COLOURS, RED, of_class
from askance.drawing.insides import Z1, Z2, within
from askance.inside.data import EDGE, ActivationMap, Inside, Wandering

SIZE = (13.0, 8.0)  # inches
LETTERS = 118  # of a line of words


def still(
    answer: Answer, words: Sequence[str], image: NDArray[np.float32], inside: Inside, wandering: Wandering
) -> bytes:
    """A PNG file.

    Args:
        answer: explained.
        words: what is said of it, a line each.
        image: [C, H, W] in [0, 1].
        inside: of the bundle that answered.
        wandering: where the image goes on its activation map.
    """
    assert answer.screening is not None
    said = {word.name: word.explanation for word in answer.screening.detectors if word.explanation is not None}
    drawn = Figure(figsize=SIZE, layout="constrained")
    grid = drawn.add_gridspec(2, 3, height_ratios=(3, 1.5), width_ratios=(1, 2, 1.6))
    shown, on_map, profile = (drawn.add_subplot(grid[0, column]) for column in range(3))
    shown.imshow(image[0] if len(image) == 1 else image.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=1)
    shown.set_axis_off()
    shown.set_title("the image")
    if "introspection" in said and inside.activation_map is not None:
        _map(on_map, inside, inside.activation_map, said["introspection"]["map_point"], wandering)
    else:
        on_map.set_axis_off()
    if "semantic_signature" in said:
        layers = [layer["layer"] for layer in said["semantic_signature"]["layers"]]
        shares = [float(layer["one_versus_two"]) for layer in said["semantic_signature"]["layers"]]
        _profile(profile, inside, layers, shares)
    else:
        profile.set_axis_off()
    text = drawn.add_subplot(grid[1, :])
    text.set_axis_off()
    lines = [part for line in words for part in textwrap.wrap(line, LETTERS, subsequent_indent="    ")]
    text.text(0, 1, "\n".join(lines), va="top", fontsize=10, parse_math=False)
    file = io.BytesIO()
    drawn.savefig(file, format="png", dpi=110)
    return file.getvalue()


def _map(axes: Axes, inside: Inside, drawn: ActivationMap, at: Sequence[float], wandering: Wandering) -> None:
    ground(axes, drawn)
    dots(axes, drawn.points, inside.labels, s=4)
    for cloud in wandering.clouds:
        dots(axes, cloud.points, cloud.predicted, s=14, marker="D", edgecolors="black", linewidths=0.4)
    for way in wandering.trajectories:
        line = placed(way.points)
        axes.plot(
            line[:, 0], line[:, 1], color=of_class(way.target), lw=2, label=f"to {inside.class_names[way.target]}"
        )
    first, second = within(at)
    axes.scatter(first, second, s=120, marker="X", c=RED, edgecolors="white", label="this image")
    axes.legend(loc="upper right", fontsize=7)
    axes.set(title="on the activation map")


def ground(axes: Axes, drawn: ActivationMap) -> None:
    """The error that is expected at the places of an activation map, dark where it is great."""
    axes.imshow(np.array(drawn.background), extent=(-EDGE, EDGE, -EDGE, EDGE), origin="lower", cmap="Greys", alpha=0.6)
    axes.set(xlabel=Z1, ylabel=Z2, xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE))


def dots(axes: Axes, points: Iterable[Sequence[float]], classes: Iterable[int], **how: Any) -> None:
    """Points on an activation map, in the colours of classes."""
    at = placed(points)
    axes.scatter(at[:, 0], at[:, 1], c=[of_class(k) for k in classes], **how)


def placed(points: Iterable[Sequence[float]]) -> NDArray[np.float64]:
    """Points on an activation map as they are drawn, [N, 2]: on its border where they lie further out."""
    return np.array([within(point) for point in points])


def _profile(axes: Axes, inside: Inside, layers: Sequence[str], shares: Sequence[float]) -> None:
    if all(layer in inside.profiles for layer in layers):
        low, _, high = zip(*(inside.profiles[layer] for layer in layers), strict=True)
        axes.fill_between(range(len(layers)), low, high, color=CLEAN, alpha=0.35, label="90% of clean images")
    axes.plot(shares, marker="o", color=COLOURS["semantic_signature"], label="this image")
    axes.set_xticks(range(len(layers)), layers, rotation=45, ha="right")
    axes.set(title="1-vs-2 tests won, by layer", xlabel="layer, in order of depth", ylabel="share", ylim=(0, 1.02))
    axes.legend(loc="lower right", fontsize=8)
