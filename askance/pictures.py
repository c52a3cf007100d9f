"""Pictures for notebooks, drawn with matplotlib; without it, which the base install does not bring, there are none."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping


def auroc_picture(auroc: Mapping[str, Mapping[str, float]], emphasised: str) -> str:
    """AUROC by attack, a mark for each scorer, as an HTML image; empty without matplotlib, or without attacks.

    Args:
        auroc: {attack: {scorer: AUROC}}.
        emphasised: the scorer whose marks stand out.
    """
    if not auroc:
        return ""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return ""
    scorers = list(dict.fromkeys(name for row in auroc.values() for name in row))
    figure = Figure(figsize=(6.5, 0.9 + 0.3 * len(auroc)), layout="constrained")
    axes = figure.subplots()
    for scorer in scorers:
        found = [(row[scorer], i) for i, row in enumerate(auroc.values()) if scorer in row]
        values, rows = zip(*found, strict=True)
        stands_out = scorer == emphasised
        axes.scatter(values, rows, s=50 if stands_out else 16, marker="D" if stands_out else "o", label=scorer)
    axes.set(yticks=range(len(auroc)), yticklabels=list(auroc), xlabel="AUROC", ylim=(len(auroc) - 0.5, -0.5))
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return f"<img alt='AUROC by attack' src='data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'>"
