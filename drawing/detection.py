"""Panels of how well attacks are detected, and what it costs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from statistics import fmean
from typing import Any

import plotly.graph_objects as go

from askance.answers import FUSED
from askance.colours import ATTACKED, CLEAN, DASHES, in_words, of_scorers
from askance.drawing.panels import Panel, figure
from askance.evaluation import Evaluation
from askance.inside.curves import TOGETHER, Curves

MOST_SETS = 12  # of detectors, that are drawn
STEPS = 2  # budgets that make a line


def panels(evaluation: Evaluation, curves: Curves) -> Iterator[Panel]:
    """Those that the evaluation has figures for."""
    if curves.detected:
        yield roc(evaluation, curves)
    if curves.shares:
        yield histograms(curves)
    if curves.p_values:
        yield uniformity(evaluation, curves)
    if budgets := by_budget(evaluation):
        yield budgets
    if curves.flagged:
        yield who_catches_what(curves)
    if len(evaluation.forward_passes) > 1 and evaluation.auroc:
        yield passes(evaluation)
    if evaluation.class_clean_flag_rate:
        yield by_class(evaluation)


def roc(evaluation: Evaluation, curves: Curves) -> Panel:
    """The share of successful attacks that is caught, by the share of clean images that is flagged for it."""

    def of(attack: str) -> go.Figure:
        lines = [
            go.Scatter(
                x=curves.rates,
                y=rates,
                name=in_words(scorer),
                line=_line(evaluation, scorer),
                visible=True if scorer in evaluation.detector_clean_flag_rate else "legendonly",
            )
            for scorer, rates in curves.detected[attack].items()
        ]
        made = figure(*lines, x="clean images flagged (share, logarithmic)", y="attacks caught (share)")
        made.update_xaxes(type="log", range=[-3.5, 0], tickvals=[0.001, 0.01, 0.05, 0.1, 1])
        return made.update_yaxes(range=[0, 1.02])

    return Panel(
        "What is caught at what price",
        "Healthy: the thick line, the fused score, is near the top left corner, and no other line is far above it. "
        "Unhealthy: it runs along the diagonal, or another line is well above it: that reading is not made use of.",
        {attack: of(attack) for attack in curves.detected},
        "attack",
        440,
    )


def histograms(curves: Curves) -> Panel:
    """Scores of clean images beside those of every attack."""

    def of(scorer: str) -> go.Figure:
        edges, sets = curves.edges[scorer], curves.shares[scorer]
        shown = ("clean", *[name for name in sets if name != "clean"][:1])
        bars = [
            go.Bar(
                x=[(low + high) / 2 for low, high in pairwise(edges)],
                y=shares,
                name=in_words(name),
                marker={"color": CLEAN if name == "clean" else ATTACKED, "opacity": 0.6},
                visible=True if name in shown else "legendonly",
            )
            for name, shares in sets.items()
        ]
        made = figure(*bars, x=f"{in_words(scorer)}: score (higher is more suspicious)", y="images (share)")
        for level, score in curves.thresholds.get(scorer, {}).items():
            made.add_vline(x=score, line={"dash": "dash", "width": 1, "color": CLEAN}, annotation_text=level)
        return made.update_layout(barmode="overlay", bargap=0)

    return Panel(
        "Scores of clean and attacked images",
        "Healthy: two hills, and the thresholds (dashed) between them. Unhealthy: the attacked hill lies in the clean "
        "one, so that no threshold tells them apart; or a part of the clean one lies beyond the thresholds. The "
        "outermost bins hold all that lies further out. Other attacks: touch them in the legend.",
        {scorer: of(scorer) for scorer in _ours_first(curves.shares)},
        "score",
    )


def uniformity(evaluation: Evaluation, curves: Curves) -> Panel:
    """p-values of clean images, which are as likely to be anywhere in [0, 1]."""
    colours = of_scorers(evaluation.scorers)

    def of(scorer: str) -> go.Figure:
        shares = curves.p_values[scorer]
        count = evaluation.splits.get("evaluate") or evaluation.classifier.images
        even = 1 / len(shares)
        half = _half(even, count)
        middles = [(place + 0.5) / len(shares) for place in range(len(shares))]
        made = figure(
            go.Bar(x=middles, y=shares, marker={"color": colours.get(scorer, CLEAN)}, name=in_words(scorer)),
            x="p-value of clean images",
            y="images (share)",
        )
        made.add_hrect(y0=even - half, y1=even + half, line={"width": 0}, fillcolor=CLEAN, opacity=0.35)
        return made.update_layout(bargap=0.05, showlegend=False)

    return Panel(
        "Whether p-values keep their word",
        "Healthy: all bars end in or near the grey band, which 95% of them would where the calibration holds; a tall "
        "one at the right, where many clean images have one score, does no harm. Unhealthy: bars rise at the left, so "
        "that more clean images are flagged than is promised: these images are not like those that it was calibrated "
        "on.",
        {scorer: of(scorer) for scorer in _ours_first(curves.p_values)},
        "score",
        320,
    )


def by_budget(evaluation: Evaluation) -> Panel | None:
    """AUROC against how far an attack moves an image (paper 000, Fig. 5); None where no kind has several budgets."""
    kinds: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for attack, about in evaluation.attacks.items():
        distance = about.median_distance.get("linf")
        if about.kind and distance is not None and attack in evaluation.auroc:
            kinds[about.kind].append((distance, attack))

    def of(rows: list[tuple[float, str]]) -> go.Figure:
        rows = sorted(rows)
        lines = [
            go.Scatter(
                x=[distance for distance, _ in rows],
                y=[evaluation.auroc[attack].get(scorer) for _, attack in rows],
                text=[in_words(attack) for _, attack in rows],
                mode="lines+markers",
                name=in_words(scorer),
                line=_line(evaluation, scorer),
            )
            for scorer in evaluation.scorers
        ]
        made = figure(*lines, x="median distance (L-infinity, of pixels in [0, 1])", y="AUROC")
        return made.update_yaxes(range=[0.4, 1.01])

    several = {in_words(kind): of(rows) for kind, rows in kinds.items() if len({one for one, _ in rows}) >= STEPS}
    if not several:
        return None
    return Panel(
        "Detection by how far an image is moved",
        "Healthy: lines rise to the right, and the fused score is high where an attack begins to succeed. Unhealthy: "
        "it falls at the left, where an attacker stops early, or at the right: it has learned one size of attack.",
        several,
        "kind of attack",
    )


def who_catches_what(curves: Curves) -> Panel:
    """Which detectors flag the same images, as an UpSet plot."""
    kinds = list(
        dict.fromkeys(kind for sets in curves.flagged.values() for one in sets if one for kind in one.split(TOGETHER))
    )
    colours = of_scorers(kinds)

    def of(attack: str) -> go.Figure:
        sets = list(curves.flagged[attack].items())[:MOST_SETS]
        total = sum(curves.flagged[attack].values())
        places = list(range(len(sets)))
        made = figure(
            go.Bar(
                x=places,
                y=[count / total for _, count in sets],
                marker={"color": [CLEAN if one else "#5b6770" for one, _ in sets]},
                customdata=[one or "nobody" for one, _ in sets],
                hovertemplate="%{customdata}: %{y:.1%}<extra></extra>",
            ),
            y="attacked images (share)",
        )
        for kind in kinds:
            flagging = [place for place, (one, _) in enumerate(sets) if kind in one.split(TOGETHER)]
            dots = {"color": colours[kind], "size": 12}
            made.add_scatter(
                x=flagging,
                y=[in_words(kind)] * len(flagging),
                mode="markers",
                marker=dots,
                yaxis="y2",
                hoverinfo="skip",
            )
        return made.update_layout(
            showlegend=False,
            xaxis={
                "showticklabels": False,
                "anchor": "y2",
                "title": "sets of detectors, most frequent first",
            },
            yaxis={"domain": [0.45, 1]},
            yaxis2={
                "domain": [0, 0.4],
                "categoryorder": "array",
                "categoryarray": [in_words(k) for k in reversed(kinds)],
            },
        )

    return Panel(
        "Which detector catches what",
        "Each bar is the share of an attack's images that exactly the detectors with a dot below it flag as suspect; "
        "the dark bar without dots: none of them, although the fused score may. Healthy: several detectors share the "
        "work. Unhealthy: one alone catches all; an attacker has then only that one to evade.",
        {attack: of(attack) for attack in curves.flagged},
        "attack",
        460,
    )


def passes(evaluation: Evaluation) -> Panel:
    """What more forward passes of the classifier buy."""
    rows = [(name, count) for name, count in evaluation.forward_passes.items() if name in evaluation.scorers]
    rows.sort(key=lambda row: row[1])

    named = {"mean AUROC": evaluation.auroc, "caught at 5% false positives, mean": evaluation.tpr_at_fpr_5}
    lines = [
        go.Scatter(
            x=[count for _, count in rows],
            y=[fmean(of[name] for of in figures.values() if name in of) for name, _ in rows],
            text=[in_words(name) for name, _ in rows],
            mode="lines+markers+text",
            textposition="bottom center",
            name=what,
        )
        for what, figures in named.items()
        if figures
    ]
    made = figure(*lines, x="forward passes for each image (mean)", y="over all attacks (0 to 1)")
    return Panel(
        "What views cost, and what they buy",
        "A single pass reads the image alone; all views read altered copies, too; second looks read them where the "
        "single pass is suspicious. Healthy: the lines rise where passes rise. Flat: serve with --single-pass.",
        {"": made.update_yaxes(range=[0, 1.05])},
        height=320,
    )


def by_class(evaluation: Evaluation) -> Panel:
    """Clean images that are flagged, by predicted class."""
    rows = evaluation.class_clean_flag_rate
    target = evaluation.target_flag_rate.get("suspect", 0.05)
    halves = [_half(target, one.images) for one in rows.values()]
    made = figure(
        go.Bar(
            x=list(rows),
            y=[one.suspect for one in rows.values()],
            marker={"color": CLEAN},
            customdata=[one.images for one in rows.values()],
            hovertemplate="%{x}: %{y:.1%} of %{customdata} images<extra></extra>",
            name="flagged",
        ),
        go.Scatter(
            x=list(rows),
            y=[target] * len(rows),
            mode="markers",
            marker={"symbol": "line-ew-open", "size": 14, "color": ATTACKED},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": halves,
                "arrayminus": [min(target, half) for half in halves],
                "color": ATTACKED,
                "thickness": 1,
            },
            name="promised, 95% interval",
        ),
        x="predicted class",
        y="clean images flagged (share)",
    )
    return Panel(
        "False alarms by class",
        "Healthy: every bar ends within the interval around what is promised. Unhealthy: one class is flagged several "
        "times as often as the others: its users bear the false alarms of all.",
        {"": made.update_yaxes(rangemode="tozero")},
        height=340,
    )


def _ours_first(scorers: Iterable[str]) -> list[str]:
    """The fused score, by which verdicts go, before all others."""
    return sorted(scorers, key=lambda scorer: scorer != FUSED)


def _line(evaluation: Evaluation, scorer: str) -> dict[str, Any]:
    """How a scorer is drawn wherever it is a line."""
    return {
        "color": of_scorers(evaluation.scorers)[scorer],
        "width": 3 if scorer == FUSED else 1.3,
        "dash": "longdash" if scorer in evaluation.baselines else DASHES.get(scorer, "solid"),
    }


def _half(share: float, images: int) -> float:
    """Half of the 95% interval, by the normal law, of a share that so many images would have."""
    return 1.96 * math.sqrt(share * (1 - share) / max(1, images))
