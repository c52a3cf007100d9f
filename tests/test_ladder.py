"""The ladder: its budgets and rungs by hand, and the fused score that has learned from it, end to end on digits."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibration_support import DigitsRun
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from askance.calibration import harness as harness_module
from askance.calibration.attacks import FGSM, Attack, StoppedPGD
from askance.calibration.attacks.rotation_translation import RotationTranslation
from askance.calibration.config import EvaluationConfig
from askance.calibration.harness import FEWEST_SUCCESSES, Harness, calibration_of
from askance.calibration.inputs import load_inputs
from askance.calibration.ladder import BUDGETS, KINDS, LARGEST, SMALLEST, first_budgets, ladder
from askance.calibration.pipeline import evaluate_bundle
from askance.calibration.stages import Stages
from askance.errors import CalibrationError
from askance.evaluation import Evaluation
from askance.judgement.arrays import Doubles

# The ladder by hand


def budget_of(attack: Attack) -> tuple[str, float]:
    """Of what stops at once, and of turns."""
    if isinstance(attack, RotationTranslation):
        assert attack.degrees == pytest.approx(min(180, 360 * attack.shift))
        return "turn", attack.shift
    assert isinstance(attack, StoppedPGD)
    assert attack.margin == 0
    return attack.norm, attack.epsilon


@pytest.mark.parametrize(
    ("needed", "found"),
    [(0.0, 1), (1 / 255, 1), (1.5 / 255, 2), (8 / 255, 8), (8.1 / 255, 16), (64 / 255, 64), (0.9, 64)],
)
@pytest.mark.parametrize("norm", BUDGETS)
def test_budgets_double_until_the_classifier_gives_way(needed: float, found: int, norm: str) -> None:
    """Or until they are as great as any: an attack that has to be seen is none to learn from. Each norm by itself: to
    the other one the classifier gives way at once.
    """
    tried: list[float] = []
    length = 28.0 if norm == "l2" else 1.0

    def success(attack: Attack) -> float:
        kind, budget = budget_of(attack)
        if kind != norm:
            return 1.0
        tried.append(budget / length)
        return 0.3 if budget / length >= needed * (1 - 1e-9) else 0.29

    first = first_budgets(success, 784)
    assert first.pop(norm) == pytest.approx(found / 255)
    assert list(first.values()) == pytest.approx([1 / 255] * 2)
    assert tried == pytest.approx([2**i / 255 for i in range(len(tried))])
    assert max(tried, default=0.0) <= LARGEST + 1e-9


@pytest.mark.parametrize("budget", [SMALLEST * 2**i for i in range(7)])
@pytest.mark.parametrize("pixels", [64, 3 * 32 * 32, 3 * 224 * 224])
def test_every_rung_at_every_budget(budget: float, pixels: int) -> None:
    """Steps that stop at once, steps that never stop, a single step, and turns."""
    first = {"linf": budget, "l2": max(SMALLEST, budget / 4), "turn": budget / 2}
    rungs = ladder(first, pixels)
    names = [rung.name for rung in rungs]
    assert len(set(names)) == len(names)
    stopped = [rung for rung in rungs if isinstance(rung, StoppedPGD)]
    steps = [rung for rung in rungs if isinstance(rung, FGSM)]
    assert {rung.kind for rung in rungs} == KINDS
    turns = [rung for rung in rungs if isinstance(rung, RotationTranslation)]
    assert len(stopped) + len(steps) + len(turns) == len(rungs)
    linf, l2, turned = (
        [first[norm] * 2**i for i in range(BUDGETS[norm]) if first[norm] * 2**i < 0.51] for norm in BUDGETS
    )
    assert len(linf) >= 2
    assert len(l2) == BUDGETS["l2"]
    assert [rung.epsilon for rung in steps] == pytest.approx(linf)
    assert not any(rung.smallest for rung in steps)
    for norm, expected in (("linf", linf), ("l2", [one * math.sqrt(pixels) for one in l2])):
        for margin in (0, 1e6):
            found = [rung.epsilon for rung in stopped if (rung.norm, rung.margin) == (norm, margin)]
            assert found == pytest.approx(expected)
    assert [budget_of(rung) for rung in turns] == [("turn", share) for share in turned]


@given(st.floats(SMALLEST, LARGEST), st.integers(1, 10**7))
def test_a_ladder_is_valid_whatever_the_classifier(budget: float, pixels: int) -> None:
    rungs = ladder(dict.fromkeys(BUDGETS, budget), pixels)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9_.+-]*", rung.name) for rung in rungs)  # as rows' names are


def test_seen_attacks_or_the_ladder() -> None:
    row = {"name": "s", "kind": "stopped_pgd", "epsilon": "8/255"}
    with pytest.raises(ValidationError, match="give seen attacks or the ladder, not both"):
        EvaluationConfig.model_validate({"attacks": [row], "seen": [row], "ladder": True})
    with pytest.raises(ValidationError, match=r"give one in evaluation\.seen, or ladder = true"):
        EvaluationConfig.model_validate({"attacks": [row], "baselines": ["lid"], "ladder": False})
    made = EvaluationConfig.model_validate({"attacks": [row], "baselines": ["lid"], "ladder": True})
    assert made.seen_kinds == {"stopped_pgd", "fgsm", "rotation_translation"}
    assert EvaluationConfig.model_validate({"attacks": [row]}) == EvaluationConfig(attacks=made.attacks, ladder=True)
    assert EvaluationConfig.model_validate({"attacks": [row], "ladder": False}).seen_kinds == frozenset()
    taught = EvaluationConfig.model_validate({"attacks": [row], "seen": [row]})
    assert not taught.ladder
    assert EvaluationConfig.model_validate(taught.model_dump()) == taught


# On digits

FLOORS: dict[str, tuple[dict[str, Any], float]] = {
    "stops at once": ({"margin": 0}, 0.97),
    "leads by 1": ({"margin": 1}, 0.97),
    "leads by 3": ({"margin": 3}, 0.97),
    "leads by 6": ({"margin": 6}, 0.97),
    "leads by 12": ({"margin": 12}, 0.96),
    "L2": ({"margin": 1, "norm": "l2", "epsilon": 1.5}, 0.95),
}


def rung(name: str, number: int) -> dict[str, Any]:
    return {"name": f"rung_{number}", "kind": "stopped_pgd", "epsilon": 0.25, **FLOORS[name][0]}


@pytest.fixture(scope="module")
def climbed(digits_run: DigitsRun) -> Evaluation:
    """The digits' bundle on attacks that stop, of the evaluation split."""
    changes = {"attacks": [rung(name, number) for number, name in enumerate(FLOORS)], "baselines": []}
    evaluation = EvaluationConfig.model_validate(digits_run.config.evaluation.model_dump() | changes)
    return evaluate_bundle(digits_run.bundle, digits_run.config.model_copy(update={"evaluation": evaluation}))


@pytest.mark.parametrize("name", FLOORS)
def test_auroc_floors_of_every_rung(climbed: Evaluation, name: str) -> None:
    """Well under what is measured; and never by opinions that have learned nothing."""
    row = f"rung_{list(FLOORS).index(name)}"
    assert climbed.attacks[row].successful > 250
    assert climbed.attacks[row].seen
    found = climbed.auroc[row]
    assert found["fused"] >= FLOORS[name][1]
    assert found["fused"] > found["fused_untrained"] + 0.005


@pytest.fixture
def harness(digits_run: DigitsRun, tmp_path: Path) -> Harness:
    inputs = load_inputs(digits_run.config)
    quick = inputs.settings.evaluation.model_copy(update={"benign_images": 0})
    settings = inputs.settings.model_copy(update={"evaluation": quick})
    (tmp_path / "work").mkdir()
    return Harness(
        replace(inputs, settings=settings),
        digits_run.bundle.detectors(),
        Stages(tmp_path / "work", {}, resume=False),
    )


def test_the_ladder_of_the_digits(harness: Harness) -> None:
    """They give way at 32/255; to L2 steps at half of that, which is as long as so much in each of 64 pixels; and to a
    turn of a sixteenth.
    """
    rungs = harness.seen_attacks
    assert len(rungs) == 17
    linf = [32 / 255, 64 / 255, 128 / 255]
    assert [one.epsilon for one in rungs if isinstance(one, FGSM)] == pytest.approx(linf)
    barely = [one.epsilon for one in rungs if isinstance(one, StoppedPGD) and one.margin == 0]
    assert barely == pytest.approx([*linf, 8 * linf[0] / 2, 8 * linf[0], 8 * linf[1]])
    turns = [one.shift for one in rungs if isinstance(one, RotationTranslation)]
    assert turns == pytest.approx([linf[0] / 2, linf[0]])


def test_every_way_to_end_is_an_opinion(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, never, and after one step, under three L-infinity budgets, three of L2, and two of turns: all of
    them count alike.
    """
    learned: list[int] = []

    def learn(calm: list[Doubles], seen: list[Doubles]) -> tuple[Doubles, float]:
        learned.append(len(seen))
        return np.zeros(len(calm[0])), 0.0

    monkeypatch.setattr(harness_module, "learn_weights", learn)
    fusion = calibration_of(harness).fused.fusion
    assert learned == [3, 3, 3, 3, 3, 2]
    assert np.exp(fusion.biases).tolist() == pytest.approx([1 / 6] * 6)


def test_rungs_out_of_reach_are_not_learned_from(harness: Harness, capsys: pytest.CaptureFixture[str]) -> None:
    """Nine successes are too few, ten enough; of none at all nothing is learned."""
    rows = {"near": {"epsilon": 0.25}, "far": {"epsilon": 0.01, "margin": 1}}
    near, far = (StoppedPGD.model_validate({"name": name, "kind": "stopped_pgd", **row}) for name, row in rows.items())
    harness.__dict__["seen_attacks"] = (near, far)
    successes = {
        name: int((~harness.scores(f"seen-{name}", *found).correct).sum()) for name, found in harness.seen.items()
    }
    assert successes["far"] < FEWEST_SUCCESSES <= successes["near"]
    assert len(calibration_of(harness).fused.fusion.biases) == 1
    harness.__dict__["seen_attacks"] = (far,)
    capsys.readouterr()
    assert len(calibration_of(harness).fused.fusion.biases) == 0
    message = (
        "warning: no rung of the ladder succeeds on the calibration split: the fused score has learned from nothing"
    )
    assert message in capsys.readouterr().err


def test_ten_successes_are_enough(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    near = StoppedPGD.model_validate({"name": "near", "kind": "stopped_pgd", "epsilon": 0.25})
    harness.__dict__["seen_attacks"] = (near,)
    succeeded = int((~harness.scores("seen-near", *harness.seen["near"]).correct).sum())
    monkeypatch.setattr(harness_module, "FEWEST_SUCCESSES", succeeded)
    assert len(calibration_of(harness).fused.fusion.biases) == 1
    monkeypatch.setattr(harness_module, "FEWEST_SUCCESSES", succeeded + 1)
    assert len(calibration_of(harness).fused.fusion.biases) == 0


def test_a_classifier_that_gets_nothing_right_has_no_ladder(harness: Harness, tmp_path: Path) -> None:
    images = harness.inputs.splits["calibrate"]
    wrong = replace(images, y=(harness.split("calibrate").predicted + 1) % 10)
    inputs = replace(harness.inputs, splits={**harness.inputs.splits, "calibrate": wrong})
    (tmp_path / "other").mkdir()
    harness = Harness(inputs, harness.detectors, Stages(tmp_path / "other", {}, resume=False))
    with pytest.raises(CalibrationError, match="gets no image of the calibration split right: nothing can be attacked"):
        calibration_of(harness)
