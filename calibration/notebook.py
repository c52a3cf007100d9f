"""What a notebook shows of an evaluation: AUROC by attack and scorer, as a picture and as a table."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from askance.notebook import table


def evaluation_html(evaluation: Mapping[str, Any]) -> str:
    """AUROC by attack and scorer, as a picture and as a table."""
    auroc: Mapping[str, Mapping[str, float]] = evaluation["auroc"]
    scorers = list(evaluation["detector_clean_flag_rate"])
    rows = [(attack, *(f"{row[s]:.3f}" if s in row else "" for s in scorers)) for attack, row in auroc.items()]
    head = ("AUROC", *(scorer.replace("_", " ") for scorer in scorers))
    return f"<div>{_picture(auroc, scorers)}{table(head, rows)}</div>"


def _picture(auroc: Mapping[str, Mapping[str, float]], scorers: Sequence[str]) -> str:
    figure = Figure(figsize=(6, 0.8 + 0.3 * len(auroc)), layout="constrained")
    axes = figure.subplots()
    for scorer in scorers:
        found = [(row[scorer], i) for i, row in enumerate(auroc.values()) if scorer in row]
        is_fused = scorer == "fused"
        values, rows = zip(*found, strict=True)
        axes.scatter(values, rows, s=50 if is_fused else 16, marker="D" if is_fused else "o", label=scorer)
    axes.set(yticks=range(len(auroc)), yticklabels=list(auroc), xlabel="AUROC", ylim=(len(auroc) - 0.5, -0.5))
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return f"<img alt='AUROC by attack' src='data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'>"
