"""Panels of what goes on inside: the activation map, the sorted network, maps of codes, the errors expected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import plotly.graph_objects as go

from askance.colours import AMBER, CLASSES, CLEAN, GREEN, RED, in_words, of_class
from askance.drawing.panels import Panel, figure
from askance.inside.codes import correlation
from askance.inside.data import EDGE, ActivationMap, Codes, ErrorEstimates, Inside, SortedLayer, Success

SHADES = "Cividis"  # which the colour-blind see as others do
DIVERGING = "RdBu"
Z1, Z2 = "z1 (prior's standard deviations)", "z2 (prior's standard deviations)"
MOST_CLASSES = 20  # that are drawn one by one


def panels(inside: Inside) -> Iterator[Panel]:
    """Those that there is something of."""
    if inside.activation_map is not None:
        yield activation_map(inside, inside.activation_map)
    if inside.errors is not None:
        yield violins(inside, inside.errors)
    if inside.sorted_network:
        yield sorted_network(inside)
        yield brainbow(inside)
    if inside.codes:
        yield densities(inside)
        yield homogeneity(inside)
        if inside.success is not None and (vulnerable := vulnerability(inside, inside.success)):
            yield vulnerable
    if inside.confusion:
        yield confusion(inside)


def activation_map(inside: Inside, drawn: ActivationMap) -> Panel:
    """Where images lie, mistakes ringed, over the error that is expected there (paper 001, Fig. 2)."""
    places = len(drawn.background)
    axis = [-EDGE + 2 * EDGE * place / (places - 1) for place in range(places)]
    made = figure(
        go.Heatmap(
            x=axis,
            y=axis,
            z=drawn.background,
            colorscale="Greys",
            zsmooth="best",
            colorbar={"title": {"text": "expected error (log10)", "side": "right"}},
            hoverinfo="skip",
        ),
        x=Z1,
        y=Z2,
    )
    cut = [within(point) for point in drawn.points]
    names = inside.class_names

    def points(rows: list[int], name: str, marker: dict[str, Any]) -> None:
        made.add_scatter(
            x=[cut[row][0] for row in rows],
            y=[cut[row][1] for row in rows],
            mode="markers",
            name=name,
            marker=marker,
            text=[f"{names[inside.labels[row]]}, taken for {names[inside.predicted[row]]}" for row in rows],
            hoverinfo="text",
        )

    for k, name in enumerate(names[:MOST_CLASSES]):
        points([row for row, label in enumerate(inside.labels) if label == k], name, {"color": of_class(k), "size": 5})
    ring = {"symbol": "circle-open", "size": 12, "color": RED, "line": {"width": 2}}
    points([row for row, right in enumerate(inside.right) if not right], "mistakes", ring)
    made.update_layout(legend={"x": 1.3})
    made.update_xaxes(range=[-EDGE, EDGE], constrain="domain")
    made.update_yaxes(range=[-EDGE, EDGE], scaleanchor="x", constrain="domain")
    return Panel(
        "The activation map",
        "Each point is an image of the evaluation split, where introspection's autoencoder puts all its activations; "
        "those further out than 4 lie on the border. Dark: an error is expected. Healthy: one patch for each class, "
        "mistakes (ringed) between patches, where it is dark. Unhealthy: classes lie on one another, or mistakes in "
        "bright patches.",
        {"": made},
        height=560,
    )


def violins(inside: Inside, errors: ErrorEstimates) -> Panel:
    """The error that is expected of images that the classifier gets right and wrong (paper 001, Fig. 7)."""
    names = [inside.class_names[label] for label in inside.labels]

    def of(values: tuple[float, ...]) -> go.Figure:
        made = figure(x="true class", y="expected error (log10)")
        for wanted, what, colour in ((True, "right", GREEN), (False, "wrong", RED)):
            rows = [row for row, one in enumerate(inside.right) if one is wanted]
            made.add_violin(
                x=[names[row] for row in rows],
                y=[values[row] for row in rows],
                name=what,
                line={"color": colour},
                side="negative" if wanted else "positive",
                points=False if wanted else "all",
                pointpos=0.3,
                spanmode="hard",
            )
        made.update_layout(violinmode="overlay", violingap=0.1)
        return made.update_xaxes(categoryorder="array", categoryarray=list(inside.class_names))

    return Panel(
        "The error that is expected of each class",
        "Healthy: red, the classifier's mistakes, lies above green, what it gets right, in every class. Unhealthy: "
        "they are level, so that the estimate knows nothing of mistakes. latent reads the two numbers of the map, "
        "as in the paper; hidden the 200 before them, and is what scores unless the config says otherwise.",
        {"hidden": of(errors.hidden), "latent": of(errors.latent)},
        "estimator",
        420,
    )


def sorted_network(inside: Inside) -> Panel:
    """Units sorted by the class that moves them most (paper 001, Fig. 3)."""

    def of(layer: str) -> go.Figure:
        one = inside.sorted_network[layer]
        made = figure(
            go.Heatmap(
                z=one.expected,
                y=list(inside.class_names),
                colorscale=DIVERGING,
                reversescale=True,
                zmid=0,
                colorbar={"title": {"text": "E[h | class]<br>(standard<br>deviations)"}},
            ),
            x=f"unit, sorted ({len(one.preferred)} of {one.units})",
            y="true class",
        )
        return made.update_yaxes(autorange="reversed")

    agreement = ", ".join(f"{layer} {one.agreement:.0%}" for layer, one in inside.sorted_network.items())
    return Panel(
        "The network, sorted",
        "What the decoder expects of each unit for each class. Healthy: a red staircase from top left to bottom "
        "right, each class with units of its own. Unhealthy: classes without a step, or with the same units. Units "
        "that never vary are left out. The class that moves a unit most by the decoder is the one by the images "
        f"themselves for: {agreement}.",
        {layer: of(layer) for layer in inside.sorted_network},
        "layer",
        360,
    )


def brainbow(inside: Inside) -> Panel:
    """Each unit in the mixed colours of the classes that move it (paper 001, Eq. 11)."""
    layers = list(inside.sorted_network)
    most = max(len(one.preferred) for one in inside.sorted_network.values())
    made = figure(x="unit, sorted (share of the layer)", y="layer")
    for layer in layers:
        one = inside.sorted_network[layer]
        count = len(one.preferred)
        made.add_bar(
            x=[(place + 0.5) / count for place in range(count)],
            y=[1] * count,
            base=[layers.index(layer)] * count,
            width=1 / count,
            marker={"color": mixed(one), "line": {"width": 0}},
            text=[inside.class_names[k] for k in one.preferred],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
            name=layer,
        )
    made.update_layout(showlegend=False, bargap=0, barmode="overlay")
    made.update_yaxes(tickvals=[place + 0.5 for place in range(len(layers))], ticktext=layers, autorange="reversed")
    return Panel(
        "The brainbow",
        "Each unit has the colours of the classes of the activation map, mixed by how much each class moves it more "
        "than the mean does. Healthy: clear colours, more so in later layers. Grey: a unit that serves many classes, "
        f"or none. At most {most} units of a layer are drawn.",
        {"": made},
        height=90 + 60 * len(layers),
    )


def mixed(layer: SortedLayer) -> list[str]:
    """The colour of each unit: the mean of the classes' by E[h | class], where that is above 0."""
    colours = [[int(of_class(k)[at : at + 2], 16) for at in (1, 3, 5)] for k in range(len(layer.expected))]
    found = []
    for unit in zip(*layer.expected, strict=True):
        weights = [max(0.0, value) for value in unit]
        total = sum(weights)
        shares = [weight / total for weight in weights] if total > 0 else [1 / len(weights)] * len(weights)
        mean = [
            round(sum(share * colour[channel] for share, colour in zip(shares, colours, strict=True)))
            for channel in range(3)
        ]
        found.append("#" + "".join(f"{value:02x}" for value in mean))
    return found


def densities(inside: Inside) -> Panel:
    """Best matching units of each class, on the map and unfolded (paper 004)."""

    def of(layer: str) -> go.Figure:
        one = inside.codes[layer]
        owners = [_most(one, unit) for unit in range(one.side**2)]
        grid = [owners[row * one.side : (row + 1) * one.side] for row in range(one.side)]
        unfolded = [row * 3 for row in grid] * 3
        count = min(len(inside.class_names), len(CLASSES))
        scale = [[(k + end) / count, of_class(k)] for k in range(count) for end in (0, 1)]
        made = figure(
            go.Heatmap(
                z=[[None if owner is None else owner % count for owner in row] for row in unfolded],
                colorscale=scale,
                zmin=-0.5,
                zmax=count - 0.5,
                showscale=False,
                text=[[None if owner is None else inside.class_names[owner] for owner in row] for row in unfolded],
                hovertemplate="%{text}<extra></extra>",
            ),
            x="column of units (unfolded)",
            y="row of units (unfolded)",
        )
        for name, centre in zip(inside.class_names, one.centres, strict=True):
            if centre is not None:
                made.add_annotation(
                    x=centre[1] + one.side,
                    y=centre[0] + one.side,
                    text=name,
                    showarrow=False,
                    bgcolor="white",
                    opacity=0.8,
                    font={"size": 11, "color": "black"},
                )
        half = one.side - 0.5
        made.add_shape(
            type="rect", x0=half, x1=half + one.side, y0=half, y1=half + one.side, line={"width": 2, "color": "black"}
        )
        made.update_xaxes(constrain="domain")
        return made.update_yaxes(scaleanchor="x", constrain="domain", autorange="reversed")

    return Panel(
        "Maps of codes",
        "Each square is a unit of a self-organizing map, coloured by the class that hits it most often; the map is a "
        "torus, drawn three by three so that no class is cut (the frame is the map itself), names at the centres of "
        "classes. Healthy: in deep layers each class has a country of its own. Unhealthy: a deep layer is as speckled "
        "as the first.",
        {layer: of(layer) for layer in inside.codes},
        "layer",
        560,
    )


def homogeneity(inside: Inside) -> Panel:
    """How much a layer's codes say of the class, and how far a class spreads."""
    layers = list(inside.codes)
    rows = list(inside.codes.values())
    made = figure(
        go.Scatter(x=layers, y=[one.information for one in rows], name="information (share of the class's entropy)"),
        go.Scatter(x=layers, y=[one.purity for one in rows], name="purity of units (share)", line={"dash": "dash"}),
        go.Scatter(
            x=layers, y=[one.spread for one in rows], name="spread of a class (units, right axis)", yaxis="y2",
            line={"dash": "dot", "color": AMBER},
        ),
        x="layer, in order of depth",
        y="share",
    )  # fmt: skip
    made.update_layout(
        legend={"orientation": "h", "y": 1.18},
        yaxis2={"overlaying": "y", "side": "right", "title": "spread (units)", "rangemode": "tozero"},
    )
    return Panel(
        "From homogeneous to diverse codes",
        "Healthy: information and purity rise with depth and the spread of a class falls: deep layers tell classes "
        "apart. Unhealthy: a deep layer tells no more than the first.",
        {"": made.update_yaxes(rangemode="tozero", selector={"title": {"text": "share"}})},
        height=340,
    )


def vulnerability(inside: Inside, success: Success) -> Panel | None:
    """Whether classes with homogeneous codes are fooled more easily (paper 004); None with too few classes to say."""
    found = {layer: correlation(zip(one.spreads, success.by_class, strict=True)) for layer, one in inside.codes.items()}
    known = {layer: one for layer, one in found.items() if one is not None}
    if not known:
        return None
    made = figure(
        go.Scatter(
            x=list(known),
            y=[r for r, _, _ in known.values()],
            mode="markers",
            marker={"size": 9},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [high - r for r, _, high in known.values()],
                "arrayminus": [r - low for r, low, _ in known.values()],
            },
            name="correlation, 95% interval",
        ),
        x="layer, in order of depth",
        y="correlation over classes (-1 to 1)",
    )
    made.add_hline(y=0, line={"width": 1, "color": CLEAN})
    return Panel(
        "Whether homogeneous codes are vulnerable",
        f"How a class's spread on the map goes with how often {in_words(success.attack)} fools it. Below 0: "
        "classes whose codes are alike are fooled more easily, as paper 004 has it. An interval that holds 0 says "
        "nothing.",
        {"": made.update_yaxes(range=[-1.05, 1.05])},
        height=320,
    )


def confusion(inside: Inside) -> Panel:
    """The confusion index of each layer's library (paper 000, Fig. 3)."""

    def of(layer: str) -> go.Figure:
        rows = inside.confusion[layer]
        names = list(inside.class_names)
        off = [[None if k == j else value for j, value in enumerate(row)] for k, row in enumerate(rows)]
        made = figure(
            go.Heatmap(x=names, y=names, z=off, colorscale=SHADES, zmin=0, colorbar={"title": {"text": "index"}}),
            x="class that is also suggested",
            y="true class",
        )
        return made.update_yaxes(autorange="reversed")

    return Panel(
        "What each layer confuses",
        "Of images whose class d1 the layer's library answers right: how strongly it suggests d2, as a share of d1. "
        "Healthy: bright cells of early layers fade with depth. Unhealthy: a pair of classes stays bright to the last "
        "layer: an attack between them has a short way.",
        {layer: of(layer) for layer in inside.confusion},
        "layer",
        460,
    )


def within(point: Sequence[float]) -> tuple[float, float]:
    """A point of the map, on its border if it lies further out."""
    first, second = (max(-EDGE, min(EDGE, float(value))) for value in point)
    return first, second


def _most(codes: Codes, unit: int) -> int | None:
    hits = [of_class[unit] for of_class in codes.fitted]
    return hits.index(max(hits)) if any(hits) else None
