"""Write docs/results/engines.md, the tables by torch beside those by the graph.

askance evaluate B CONFIG --engine onnxruntime --json G.json, for each bundle; then
python tools/engines.py B G.json [B G.json ...]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from askance.calibration.markdown import table
from askance.detectors import Bundle
from askance.evaluation import Evaluation

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results" / "engines.md"
BEGIN, END = "<!-- engines: begin -->\n", "<!-- engines: end -->"
FIGURES = {"AUROC": "auroc", "TPR at 5% FPR": "tpr_at_fpr_5", "TPR at 1% FPR": "tpr_at_fpr_1"}


def differences(one: Mapping[str, Mapping[str, float]], other: Mapping[str, Mapping[str, float]]) -> list[float]:
    """How far each figure of `other`, which may be without baselines, is from the one's; both have the same rows."""
    assert set(one) == set(other)
    return [abs(one[name][scorer] - value) for name, row in other.items() for scorer, value in row.items()]


def compared(bundle: Bundle, by_graph: Evaluation) -> list[tuple[str, ...]]:
    """A row for each kind of figure."""
    by_torch, rows = bundle.evaluation(), []
    for name, field in FIGURES.items():
        found = differences(getattr(by_torch, field), getattr(by_graph, field))
        equal = sum(value == 0 for value in found)
        rows.append((bundle.manifest.classifier.name, name, f"{len(found)}", f"{equal}", f"{max(found):.5f}"))
    clean = [abs(by_torch.clean_flag_rate[level] - rate) for level, rate in by_graph.clean_flag_rate.items()]
    counts = f"{len(clean)}", f"{sum(value == 0 for value in clean)}"
    return [*rows, (bundle.manifest.classifier.name, "clean images flagged", *counts, f"{max(clean):.5f}")]


if __name__ == "__main__":
    rows = [
        row
        for bundle, graph in zip(sys.argv[1::2], sys.argv[2::2], strict=True)
        for row in compared(Bundle.open(Path(bundle)), Evaluation.from_json(json.loads(Path(graph).read_text())))
    ]
    head, _, rest = PAGE.read_text().partition(BEGIN)
    made = table(("classifier", "figure", "how many", "the same to the last bit", "greatest difference"), rows)
    PAGE.write_text(f"{head}{BEGIN}\n{made}\n\n{END}{rest.partition(END)[2]}")
