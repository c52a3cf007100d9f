"""Draw histograms of the fused score: python tools/histograms.py BUNDLE OUT.png ATTACK..."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
READER = "fused"


def report_data(bundle: Path) -> dict[str, Any]:
    """What a bundle's report/index.html was drawn from."""
    found = DATA.search((bundle / "report" / "index.html").read_text(encoding="utf-8"))
    if found is None:
        raise SystemExit(f"{bundle} has no report data")
    data: dict[str, Any] = json.loads(found[1])
    return data


def main(bundle: str, out: str, *attacks: str) -> None:
    """One panel for each attack: clean and successful attacks' scores, and the thresholds."""
    mpl.use("Agg")
    data = report_data(Path(bundle))
    histogram = data["histograms"][READER]
    for attack in attacks:
        if attack not in histogram:
            raise SystemExit(f"the report has no attack {attack!r}: {', '.join(k for k in histogram if k != 'edges')}")
    edges = np.array(histogram["edges"])
    figure, panels = plt.subplots(1, len(attacks), figsize=(4 * len(attacks), 3), squeeze=False, layout="constrained")
    for axes, attack in zip(panels[0], attacks, strict=True):
        for name, colour in (("clean", "#2a7f3f"), (attack, "#b22222")):
            axes.stairs(histogram[name], edges, fill=True, alpha=0.5, color=colour, label=name)
        for level, value in data["thresholds"][READER].items():
            axes.axvline(value, color="black", linewidth=0.8, linestyle="--" if level == "suspect" else "-")
        auroc = data["evaluation"]["auroc"][attack][READER]
        axes.set(title=f"{attack}: AUROC {auroc:.3f}", xlabel="fused score (log-odds)", ylabel="share of images")
        axes.legend()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
