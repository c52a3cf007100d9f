"""Draw histograms of the fused score: python tools/histograms.py BUNDLE OUT.png ATTACK..."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from askance.calibration.report import CURVES
from askance.detectors import Bundle
from askance.inside.curves import Curves

READER = "fused"


def main(bundle: str, out: str, *attacks: str) -> None:
    """One panel for each attack: clean and successful attacks' scores, and the thresholds."""
    mpl.use("Agg")
    opened = Bundle.open(Path(bundle))
    curves, evaluation = Curves.model_validate_json(opened.content(CURVES)), opened.evaluation()
    histogram, edges = curves.shares[READER], np.array(curves.edges[READER])
    for attack in attacks:
        if attack not in histogram:
            raise SystemExit(f"the report has no attack {attack!r}: {', '.join(histogram)}")
    figure, panels = plt.subplots(1, len(attacks), figsize=(4 * len(attacks), 3), squeeze=False, layout="constrained")
    for axes, attack in zip(panels[0], attacks, strict=True):
        for name, colour in (("clean", "#2a7f3f"), (attack, "#b22222")):
            axes.stairs(histogram[name], edges, fill=True, alpha=0.5, color=colour, label=name)
        for level, value in curves.thresholds[READER].items():
            axes.axvline(value, color="black", linewidth=0.8, linestyle="--" if level == "suspect" else "-")
        auroc = evaluation.auroc[attack][READER]
        axes.set(title=f"{attack}: AUROC {auroc:.3f}", xlabel="fused score (log-odds)", ylabel="share of images")
        axes.legend()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
