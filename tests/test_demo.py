"""What the demo says of its answers: verdicts, and the reasons beside them."""

from __future__ import annotations

import pytest

from askance.answers import Answer, DetectorVerdict, Prediction, Reason, Screening, Verdict
from askance.demo import DemoFigures, example_of, reasons_of, verdicts_of
from askance.evaluation import Evaluation
from askance.output import print_demo


def answer(verdict: Verdict, **p_values: float) -> Answer:
    """One with these reasons, flagged as levels of 5% and 1% would."""
    reasons = tuple(
        Reason(name, p, tuple(level for level, target in (("suspect", 0.05), ("adversarial", 0.01)) if p <= target))
        for name, p in p_values.items()
    )
    fused = DetectorVerdict("fused", 1.0, p_values["manipulated"], ())
    return Answer(Prediction(7, "seven", (0.1, 0.9)), verdict, Screening(fused, (), reasons))


CLEAN = [
    answer(Verdict.CLEAN, manipulated=0.4, unfamiliar=0.03, doubtful=0.7),
    answer(Verdict.CLEAN, manipulated=0.9, unfamiliar=0.5, doubtful=0.2),
]
ATTACKED = [
    answer(Verdict.CLEAN, manipulated=0.06, unfamiliar=0.5, doubtful=0.004),
    answer(Verdict.SUSPECT, manipulated=0.02, unfamiliar=0.008, doubtful=0.3),
    answer(Verdict.ADVERSARIAL, manipulated=0.003, unfamiliar=0.3, doubtful=0.3),
]


def test_reasons_are_counted_beside_verdicts() -> None:
    assert verdicts_of(ATTACKED) == {"CLEAN": 1, "SUSPECT": 1, "ADVERSARIAL": 1}
    assert reasons_of(ATTACKED) == {"manipulated": 2, "unfamiliar": 1, "doubtful": 1}
    assert reasons_of(CLEAN) == {"manipulated": 0, "unfamiliar": 1, "doubtful": 0}
    assert example_of(ATTACKED) == (
        "SUSPECT: manipulated: the detectors contradict the answer (p = 0.02); "
        "unfamiliar: not like the images calibrated on (p = 0.008)"
    )
    assert example_of(CLEAN) is None


def test_the_demo_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {"clean": CLEAN, "pgd (successful)": ATTACKED, "fgsm (successful)": []}
    figures = DemoFigures(
        Evaluation.from_json({"classifier": {"accuracy": 1.0, "images": 2}}),
        {name: verdicts_of(answers) for name, answers in shown.items()},
        {name: reasons_of(answers) for name, answers in shown.items()},
        {"pgd (successful)": str(example_of(ATTACKED))},
        {"p50": 1.0, "p99": 2.0},
        b"<html>",
    )
    print_demo(figures)
    said = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in said.splitlines() if "│" in line]
    assert ["clean", "2 (100%)", "0 (0%)", "0 (0%)", "0 (0%)", "1 (50%)", "0 (0%)"] in cells
    assert ["pgd (successful)", "1 (33%)", "1 (33%)", "1 (33%)", "2 (67%)", "1 (33%)", "1 (33%)"] in cells
    assert ["fgsm (successful)", *["0"] * 6] in cells
    assert (
        "pgd (successful), the first that is not CLEAN: SUSPECT: manipulated: the detectors contradict the answer "
        "(p = 0.02); unfamiliar: not like the images calibrated on (p = 0.008)\n"
    ) in said
    assert figures.as_json()["reasons"]["clean"] == {"manipulated": 0, "unfamiliar": 1, "doubtful": 0}
    assert "report" not in figures.as_json()
