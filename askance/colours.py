"""Colours: one for each detector, everywhere; M. Okabe and K. Ito's, which the colour-blind can tell apart."""

from __future__ import annotations

from collections.abc import Sequence

FUSED = "#d55e00"
COLOURS = {
    "library_network": "#0072b2",
    "introspection": "#009e73",
    "self_organizing_map": "#e69f00",
    "semantic_signature": "#cc79a7",
    "constellation": "#56b4e9",
    "fused": FUSED,
    "fused_single_pass": FUSED,
    "fused_second_look": FUSED,
    "fused_untrained": FUSED,
}
DASHES = {"fused_single_pass": "dot", "fused_second_look": "dashdot", "fused_untrained": "dash"}
OTHERS = ("#7f7f7f", "#a6761d", "#5b6770", "#8c6bb1", "#666633", "#9b3d3d", "#3d6b6b", "#94949f", "#b38f5a", "#4f4f7a")
"""Of what is not ours: baselines, and detectors of other packages."""
CLEAN, ATTACKED = "#8c96a3", FUSED
CLASSES = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#ee8866", "#44bb99", "#aaaa00")
"""P. Tol's bright and light schemes; of more classes they come again."""
GREEN, AMBER, RED = "#1a7f37", "#9a6700", "#cf222e"


def of_scorers(names: Sequence[str]) -> dict[str, str]:
    """The colour of each scorer."""
    strangers = [name for name in names if name not in COLOURS]
    return {name: COLOURS.get(name) or OTHERS[strangers.index(name) % len(OTHERS)] for name in names}


def of_class(index: int) -> str:
    """The colour of a class."""
    return CLASSES[index % len(CLASSES)]


def in_words(name: str) -> str:
    """A name of ours as people write it."""
    return name.replace("_", " ")
