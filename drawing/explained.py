"""One image explained: its words, and its place among the images that are known."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from askance.answers import Answer
from askance.colours import CLEAN, COLOURS, RED, of_class
from askance.drawing import insides
from askance.drawing.page import assembled
from askance.drawing.panels import Panel, figure
from askance.inside.data import Inside, Trajectory, Wandering

ERROR = "expected error (log10)"
CROSS = {"symbol": "x", "size": 16, "color": RED, "line": {"width": 2, "color": "white"}}


def page(answer: Answer, words: Sequence[str], image: bytes, inside: Inside, wandering: Wandering) -> str:
    """A page of one image.

    Args:
        answer: explained.
        words: what is said of it, a line each.
        image: as a PNG file.
        inside: of the bundle that answered.
        wandering: where the image goes on its activation map.
    """
    first, *others = words
    shown = base64.b64encode(image).decode()
    head = (
        f'<p><img src="data:image/png;base64,{shown}" alt="the image" width="160"></p>'
        f"<p><b>{escape(first)}</b></p><ul>{''.join(f'<li>{escape(line)}</li>' for line in others)}</ul>"
    )
    assert answer.screening is not None
    said = {word.name: word.explanation for word in answer.screening.detectors if word.explanation is not None}
    ways = [*noisy(inside, wandering), *towards(inside, wandering)]
    return assembled("one image explained", head, "", [*panels(said, inside), *ways])


def panels(said: Mapping[str, Mapping[str, Any]], inside: Inside) -> Iterator[Panel]:
    """Where the image lies, by what its detectors say."""
    if "introspection" in said and inside.activation_map is not None:
        yield on_the_map(said["introspection"], insides.activation_map(inside, inside.activation_map))
    if "self_organizing_map" in said and inside.codes:
        yield among_codes(said["self_organizing_map"], insides.densities(inside))
    if "semantic_signature" in said:
        yield profile(said["semantic_signature"], inside)


def on_the_map(said: Mapping[str, Any], panel: Panel) -> Panel:
    """The image as a cross among others."""
    (made,) = panel.figures.values()
    first, second = insides.within(said["map_point"])
    made.add_scatter(x=[first], y=[second], mode="markers", name="this image", marker=CROSS)
    caption = (
        "The cross is this image, the points are images of the evaluation split; what lies further out than 4 is "
        "drawn on the border. Healthy: the cross lies in the patch of the answer. Unhealthy: between patches, or in "
        "another one."
    )
    return Panel(panel.title, caption, {"": made}, height=panel.height)


def among_codes(said: Mapping[str, Any], panel: Panel) -> Panel:
    """The best matching units, as a cross on each map."""
    for layer in said["layers"]:
        made = panel.figures.get(layer["layer"])
        if made is not None:
            row, column = (int(place) for place in layer["unit"])
            side = len(made.data[0].z) // 3
            made.add_scatter(
                x=[column + side], y=[row + side], mode="markers", name="this image", marker=CROSS, showlegend=False
            )
    caption = (
        "The cross is the unit that is nearest to this image's code. Healthy: in every layer it lies in the country "
        "of the answer. Unhealthy: early layers put it elsewhere than late ones."
    )
    return Panel(panel.title, caption, panel.figures, panel.choice, panel.height)


def profile(said: Mapping[str, Any], inside: Inside) -> Panel:
    """The 1-vs-2 profile over the layers (paper 003)."""
    layers = [layer["layer"] for layer in said["layers"]]
    made = figure(
        go.Scatter(
            x=layers,
            y=[float(layer["one_versus_two"]) for layer in said["layers"]],
            mode="lines+markers",
            line={"color": COLOURS["semantic_signature"]},
            name="this image",
        ),
        x="layer, in order of depth",
        y="1-vs-2 tests won (share)",
    )
    if all(layer in inside.profiles for layer in layers):
        for end, fill in ((0, None), (2, "tonexty")):
            made.add_scatter(
                x=layers,
                y=[inside.profiles[layer][end] for layer in layers],
                mode="lines",
                line={"width": 0},
                fill=fill,
                fillcolor=f"{CLEAN}55",
                name="90% of clean images",
                showlegend=end > 0,
            )
    return Panel(
        "Whom the layers speak for",
        "Against each other class, does a layer's likeness to known images go by the answer's words? Healthy: the line "
        "lies in the band of clean images. Unhealthy: early layers speak against the answer, and only the last for it.",
        {"": made.update_yaxes(range=[0, 1.02])},
        height=320,
    )


def noisy(inside: Inside, wandering: Wandering) -> Iterator[Panel]:
    """Where noisy copies lie, for each strength of noise (paper 001, Fig. 5)."""
    if inside.activation_map is None or not wandering.clouds:
        return
    figures = {}
    for cloud in wandering.clouds:
        (made,) = insides.activation_map(inside, inside.activation_map).figures.values()
        for k in sorted(set(cloud.predicted)):
            cut = [insides.within(at) for at, given in zip(cloud.points, cloud.predicted, strict=True) if given == k]
            made.add_scatter(
                x=[first for first, _ in cut],
                y=[second for _, second in cut],
                mode="markers",
                name=f"copy: {inside.class_names[k]}",
                marker={"symbol": "diamond", "size": 8, "color": of_class(k), "line": {"width": 1, "color": "black"}},
            )
        figures[f"{cloud.sigma:g}"] = made
    yield Panel(
        "Under noise",
        "Diamonds are copies of the image with Gaussian noise, coloured by what the classifier takes them for; the "
        "choice is the noise's standard deviation, in pixel values. Healthy: a small cloud of one colour, that drifts "
        "as a whole when the noise grows. Unhealthy: little noise strews the copies over other classes' patches.",
        figures,
        "noise",
        560,
    )


def towards(inside: Inside, wandering: Wandering) -> Iterator[Panel]:
    """Where the image goes towards other classes, and the error expected on the way (paper 001, Fig. 6)."""
    ways = wandering.trajectories
    if inside.activation_map is None or not ways:
        return
    (made,) = insides.activation_map(inside, inside.activation_map).figures.values()
    for way in ways:
        cut = [insides.within(at) for at in way.points]
        made.add_scatter(
            x=[first for first, _ in cut],
            y=[second for _, second in cut],
            mode="lines",
            name=f"to {inside.class_names[way.target]}",
            line={"color": of_class(way.target), "width": 3},
        )
    yield Panel(
        "On its way to other classes",
        "Each line is where the image goes on the activation map while it is changed, step by step, until the "
        "classifier takes it for another class. Healthy: a line crosses the dark between patches, and ends in the "
        "patch of its class. Unhealthy: it jumps there over bright ground.",
        {"": made},
        height=560,
    )
    yield Panel(
        "The error that is expected on the way",
        "Healthy: a line rises on the way, where the image is neither one class nor the other, and falls at its end. "
        "Unhealthy: it stays low all the way: introspection does not see such a change.",
        {"": figure(*map(_line, ways, [inside.class_names[way.target] for way in ways]), x="step", y=ERROR)},
    )


def _line(way: Trajectory, name: str) -> go.Scatter:
    return go.Scatter(y=way.errors, mode="lines", name=f"to {name}", line={"color": of_class(way.target)})
