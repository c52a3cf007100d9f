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
INKS = {
    "ink": ("#1d2733", "#e6edf3"),
    "faint": ("#57616d", "#9aa7b4"),
    "rule": ("#d3dae1", "#38424d"),
    "paper": ("#ffffff", "#12171d"),
    "card": ("#f6f8fa", "#1b222a"),
    "link": ("#0a58a3", "#7db9f5"),
    "baseline": ("#8a4d00", "#e3a86b"),
    "green": ("#1a7f37", "#56c26d"),
    "amber": ("#8a5a00", "#e0a83a"),
    "red": ("#c11c28", "#ff7b76"),
}
"""Of a page's text and rules, each by day and by night; all can be read on `paper` and on `card`."""


def stylesheet() -> str:
    """The colours of pages as CSS variables."""
    day, night = (" ".join(f"--{name}: {of[at]};" for name, of in INKS.items()) for at in (0, 1))
    band = f"--band: {CLEAN}; --fused: {FUSED};"
    return f":root {{ {day} {band} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {night} }} }}\n"


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
