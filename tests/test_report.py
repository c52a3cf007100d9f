"""The report: its data, and the page that carries it."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from calibration_support import DigitsRun

from askance.answers import FUSED
from askance.calibration.attacks import FGSM
from askance.calibration.evaluation import AttackedSet, Evidence, SetScores, evaluate
from askance.calibration.report import report
from askance.judgement import Levels
from askance.judgement.conformal import table

LEVELS = Levels()


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found.group(1))
    return data


def page_of(doubts: dict[str, dict[str, str]]) -> str:
    zeros = torch.zeros(1000, dtype=torch.long)
    clean = SetScores({FUSED: torch.arange(1000) / 1000}, zeros, zeros)
    attacked = SetScores({FUSED: torch.tensor([0.95, 0.995, 2.0, 0.1])}, torch.tensor([1, 1, 1, 0]), zeros[:4])
    options = FGSM(name="f", kind="fgsm", epsilon=0.1)
    evidence = Evidence(
        clean, {FUSED: table(clean.columns[FUSED].numpy())}, [AttackedSet(options, attacked, {}, True)], {}
    )
    evaluation = evaluate(evidence, LEVELS, ("a",)).model_copy(update={"doubts": doubts})
    files = report("</script> & friends", evaluation, evidence, LEVELS)
    assert list(files) == ["report/index.html"]
    return files["report/index.html"].decode()


@pytest.fixture(scope="module")
def page() -> str:
    return page_of({})


def test_curves_and_histograms_by_hand(page: str) -> None:
    data = data_of(page)
    assert data["title"] == "</script> & friends"
    grid, curve = data["curves"]["grid"], data["curves"]["f"][FUSED]
    assert len(grid) == len(curve) == 71
    # three successful attacks: above all 1,000 clean, above all but 5 (the last is .995 itself), above all but 50
    for rate, expected in ((0.001, 1 / 3), (0.01, 2 / 3), (0.06, 1.0)):
        at = int(np.searchsorted(grid, rate))
        assert curve[at] == pytest.approx(expected, abs=1e-4)
    histogram = data["histograms"][FUSED]
    assert len(histogram["edges"]) == 41
    assert sum(histogram["clean"]) == pytest.approx(1, abs=0.01)
    assert sum(histogram["f"]) == pytest.approx(1, abs=0.01)
    assert data["thresholds"][FUSED]["suspect"] == pytest.approx(0.95, abs=0.001)


def test_the_page_is_self_contained(page: str) -> None:
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "src=" not in page
    assert "<link" not in page
    assert page.count("</script>") == 2


def test_a_bundle_has_its_report(digits_run: DigitsRun) -> None:
    page = (digits_run.bundle.path / "report" / "index.html").read_text()
    data = data_of(page)
    assert data["evaluation"]["auroc"] == digits_run.bundle.evaluation().auroc
    assert set(data["curves"]) == {"grid", "fgsm", "pgd"}
    assert "diagnostics" not in data["evaluation"]


def test_layers_of_no_use_are_marked() -> None:
    found = {"library_network": {"conv1": "with the threshold 0 its library holds 1 pattern: raise it"}}
    page = page_of(found)
    assert data_of(page)["evaluation"]["doubts"] == found
    assert ".doubt td { background: var(--amber);" in page
    assert page.count('id="doubts" hidden') == 1  # shown by the script, where there are some
