"""The matrix of victims: the same rule and the same attacks for each; the page is of what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from askance.calibration import harness
from askance.classifiers import build_classifier, load_weights
from askance.detectors import ConstellationOptions
from askance.judgement import conditioning, fusion
from benchmarks.matrix import __main__ as command
from benchmarks.matrix.choices import DEFAULT, SETTINGS, changed, left_out
from benchmarks.matrix.glyphs import glyphs
from benchmarks.matrix.report import behind_baseline, behind_reading, page
from benchmarks.matrix.run import inputs_for
from benchmarks.matrix.suite import MOST, suite
from benchmarks.matrix.victims import HERE, VICTIMS


def attack(fused: float, low: float, high: float, baseline: float, reading: float | None) -> dict[str, Any]:
    return {
        "attempted": 150,
        "successful": 100,
        "auroc": {"fused": fused, "fused_untrained": 0.5},
        "interval": [low, high],
        "flagged": {"suspect": 0.9, "adversarial": 0.5},
        "baseline": ["max_softmax", baseline],
        "reading": None if reading is None else ["library_network/novelty:fc1", reading],
    }


def rows(**attacks: dict[str, Any]) -> dict[str, Any]:
    return {
        "about": "a network",
        "accuracy": 0.9,
        "images": 1000,
        "forward_passes": {"fused": 11, "fused_single_pass": 1},
        "layers": ["fc1"],
        "baselines": ["max_softmax"],
        "attacks": attacks,
        "clean": {"suspect": 0.05, "adversarial": 0.01},
        "classes": {"a": {"images": 10, "suspect": 0.1, "adversarial": 0.0}},
        "controls": {
            "fog_1": {"accuracy": 0.95, "counted": 140, "suspect": 0.09, "adversarial": 0.01},
            "fog_2": {"accuracy": 0.85, "counted": 120, "suspect": 0.05, "adversarial": 0.03},
            "fog_3": {"accuracy": 0.5, "counted": 70, "suspect": 0.5, "adversarial": 0.3},
            "blur_1": {"accuracy": 0.0, "counted": 0},
        },
    }


def test_a_row_is_behind_only_beyond_its_interval() -> None:
    assert not behind_baseline(attack(0.9, 0.88, 0.92, baseline=0.92, reading=None))
    assert behind_baseline(attack(0.9, 0.88, 0.92, baseline=0.921, reading=None))
    assert not behind_reading(attack(0.9, 0.88, 0.92, baseline=0, reading=None))
    assert not behind_reading(attack(0.9, 0.88, 0.92, baseline=0, reading=0.919))
    assert behind_reading(attack(0.9, 0.88, 0.92, baseline=0, reading=0.921))
    assert not behind_reading(attack(0.997, 0.996, 0.998, baseline=0, reading=0.999))  # within .005 all the same


def test_the_page_has_every_row_worst_first_and_says_where_another_is_ahead() -> None:
    good, bad = attack(0.99, 0.98, 1.0, 0.5, 0.99), attack(0.8, 0.75, 0.85, 0.9, 0.95)
    text = page({"mine": rows(pgd=good, patch=bad)}, {}, "# Words")
    assert text.startswith("# Words\n\n## At a glance\n\n| victim |")
    assert "| mine | 90.0% | 2 | .895 |  | .500 | .700 | .800 `patch` | 90% / 50% | 1 | 1 | 5.0% / 1.0% | 10.0%" in text
    assert text.index("| `patch` |") < text.index("| `pgd` |")
    assert (
        "| `patch` | 100/150 | .800 <sub>.750 to .850</sub> |  | .500 | **.900** <sub>max softmax</sub> "
        "| **.950** <sub>library network/novelty:fc1</sub> | 90% / 50% |" in text
    )
    assert "| `fog_1` | **9.0%** / 1.0% |" in text
    assert "| `fog_2` | (5.0% / **3.0%**) |" in text
    assert "| `blur_1` |  |" in text
    assert "fog_3" not in text  # not mild
    assert "Layers `fc1`; forward passes: fused 11, fused single pass 1; baselines: max softmax." in text


def test_attacks_are_scaled_to_what_the_victim_gives_way_to() -> None:
    weak, strong = ({one["name"]: one for one in suite(budget, 784)} for budget in (0.1, 0.4))
    assert (weak["fgsm_half"]["epsilon"], weak["fgsm"]["epsilon"], weak["fgsm_twice"]["epsilon"]) == (0.05, 0.1, 0.2)
    assert weak["l2_pgd"]["epsilon"] == pytest.approx(0.05 * 28)
    assert strong["fgsm_twice"]["epsilon"] == MOST
    assert [one["margin"] for one in weak.values() if one["kind"] == "stopped_pgd"] == [0, 1, 3, 5, 10]


@pytest.mark.parametrize("name", VICTIMS)
def test_victims_have_small_weights_that_fit_them(name: str) -> None:
    victim = VICTIMS[name]
    if victim.training is None:
        pytest.skip(f"{name}: its weights are not ours")
    path = HERE / victim.weights
    assert path.stat().st_size < 5e6
    build_classifier(victim.factory, victim.arguments, load_weights(path))


def test_a_victim_is_calibrated_by_the_rule_and_nothing_else(tmp_path: Path) -> None:
    inputs = inputs_for(VICTIMS["digits"], tmp_path)
    assert {name: len(images) for name, images in inputs.splits.items()} == {
        "fit": 700,
        "held_out": 219,
        "calibrate": 274,
        "fuse": 274,
        "evaluate": 329,
    }
    wanted = inputs.settings.detectors.wanted()
    assert list(wanted) == ["library_network", "introspection", "self_organizing_map", "constellation"]
    assert wanted["constellation"] == ConstellationOptions(displacement_layers=("conv1", "conv2"), seed=0)
    assert inputs.settings.evaluation.ladder
    assert len(inputs.settings.evaluation.attacks) == len(suite(0.1, 64))
    assert (tmp_path / "digits_train.npz").exists()


def test_letters_are_the_same_on_every_machine_and_balanced() -> None:
    some = glyphs(520, seed=3)
    assert some.x.shape == (520, 1, 32, 32)
    assert some.x.dtype == torch.uint8
    assert torch.equal(some.x, glyphs(520, seed=3).x)
    assert not torch.equal(some.x, glyphs(520, seed=4).x)
    assert some.y.unique().tolist() == list(range(26))
    ink = (some.x.flatten(1).double().amin(dim=1) < 120).double().mean()
    assert ink == 1  # something is drawn on each


def test_a_misspelt_victim_is_told_of_the_nearest() -> None:
    app = typer.Typer()
    app.command()(command.main)
    result = CliRunner().invoke(app, ["digit"])
    assert result.exit_code == 2
    assert "digits" in result.output


def test_the_page_has_what_the_others_would_have_chosen() -> None:
    choices = {
        "a": {"means": {DEFAULT: 0.6, "other": 0.9}, "chosen": DEFAULT, "chosen_gives": 0.6, "as_it_is": 0.6},
        "b": {"means": {DEFAULT: 0.9, "other": 0.8}, "chosen": "other", "chosen_gives": 0.8, "as_it_is": 0.9},
    }
    text = page({"a": rows(pgd=attack(0.9, 0.8, 1.0, 0.5, 0.5))}, choices, "# Words")
    assert f"| {DEFAULT} | .6000 | .9000 |\n| other | .9000 | .8000 |" in text
    assert "| b | .9000 | other | .8000 |" in text


# Constants, left-one-out


def test_each_victim_is_tried_with_what_the_others_would_have_chosen() -> None:
    """By hand: `a` alone gains from the other setting, so the other two keep the one there is, and it takes theirs."""
    found = {
        "a": {DEFAULT: {"x": 0.5, "y": 0.7}, "other": {"x": 0.9, "y": 0.9}},
        "b": {DEFAULT: {"x": 0.9}, "other": {"x": 0.8}},
        "c": {DEFAULT: {"x": 0.8}, "other": {"x": 0.75}},
    }
    result = left_out(found)
    assert (result["a"]["chosen"], result["a"]["chosen_gives"], result["a"]["as_it_is"]) == (DEFAULT, 0.6, 0.6)
    for victim, gives in (("b", 0.8), ("c", 0.75)):  # .3 - .05 and .3 - .1 for the other setting
        assert (result[victim]["chosen"], result[victim]["chosen_gives"]) == ("other", gives)
    assert result["a"]["means"] == {DEFAULT: 0.6, "other": 0.9}


def constants() -> list[Any]:
    places = (fusion.EVEN_ODDS, fusion.TAIL, fusion.FEW, conditioning.KNOTS)
    return [*places, *(vars(harness)[name] for name in ("LEARNED", "learn_weights"))]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_changes_one_thing_and_puts_it_back(name: str) -> None:
    before = constants()
    rungs = ("ladder_barely_l2_1", "ladder_sure_linf_1", "ladder_step_1", "ladder_turn_1")
    with changed(SETTINGS[name]) as wanted:
        differing = sum(one != other for one, other in zip(before, constants(), strict=True))
        dropped = sum(not wanted(rung) for rung in rungs)
    assert differing + dropped == (0 if name == DEFAULT else 1)
    assert constants() == before
