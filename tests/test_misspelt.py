"""Misspelt names in calls from Python: one line says which was meant. (Those of configs have their tests there.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import askance
from askance.errors import did_you_mean, unknown_choice

DATA = {name: (torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 0, 1])) for name in ("fit", "calibrate", "fuse", "evaluate")}
RIGHT: dict[str, Any] = {
    "mean": [0.5],
    "std": [0.5],
    "detectors": {"self_organizing_map": {"map_layers": ["1"]}},
    "attacks": [{"name": "pgd", "kind": "pgd", "epsilon": 0.1}],
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"batchsize": 3},
            r"^unknown argument 'batchsize': did you mean 'batch_size'\? known: classifier, data, out, ",
        ),
        ({"attackd_images": 3}, r"^unknown argument 'attackd_images': did you mean 'attacked_images'\?"),
        ({"xyzzy": 3}, r"^unknown argument 'xyzzy': known: classifier, data, out, "),
        ({"detectors": {"self_organising_map": {}}}, r"'detectors.self_organising_map': did you mean 'self_organizing"),
        ({"detectors": {"self_organizing_map": {"map_layer": ["1"]}}}, r"map_layer': did you mean 'map_layers'\?"),
        ({"attacks": [{"name": "p", "kind": "pdg"}]}, r"attacks.0.kind: unknown 'pdg': did you mean 'pgd'\?"),
        ({"baselines": ["max_sofmax"]}, r"baselines.0: unknown 'max_sofmax': did you mean 'max_softmax'\?"),
        ({"controls": [{"name": "j", "kind": "jepg"}]}, r"controls.0.kind: unknown 'jepg': did you mean 'jpeg'\?"),
        ({"levels": {"supsect": 0.1}}, r"'levels.supsect': did you mean 'suspect'\?"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_arguments_of_calibrate(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(askance.ConfigError, match=message) as caught:
        askance.calibrate(classifier, DATA, out=tmp_path / "bundle", **(RIGHT | wrong))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_arguments_of_evaluate() -> None:
    with pytest.raises(askance.ConfigError, match=r"'sed': did you mean 'seed'\? known: bundle, data, attacks, "):
        askance.evaluate("nowhere", DATA, attacks=RIGHT["attacks"], sed=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"fti": "fit"},
            r"data has an unknown split 'fti': did you mean 'fit'\? known: fit, calibrate, fuse, evaluate, h",
        ),
        ({"heldout": "held_out"}, r"data has an unknown split 'heldout': did you mean 'held_out'\?"),
        ({None: "fuse"}, r"data has no split 'fuse': it needs fit, calibrate, fuse, evaluate; held_out is optional"),
    ],
    ids=["fit", "held_out", "missing"],
)
def test_splits(tmp_path: Path, changes: dict[str | None, str], message: str) -> None:
    ((new, old),) = changes.items()
    data = {name: one for name, one in DATA.items() if name != old} | ({} if new is None else {new: DATA["fit"]})
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(askance.DataError, match=message):
        askance.calibrate(classifier, data, out=tmp_path / "bundle", **RIGHT)


def test_one_helper_says_it() -> None:
    assert did_you_mean("fues", ["fit", "fuse"]) == "did you mean 'fuse'? known: fit, fuse"
    assert did_you_mean("xyzzy", ["fit", "fuse"]) == "known: fit, fuse"
    assert did_you_mean("n1", [f"n{i}x" for i in range(14)]).endswith("n10x, n11x, ...")
    error = {"type": "literal_error", "input": "bee", "ctx": {"expected": "'been', 'cat' or 'dog'"}}
    assert unknown_choice(error) == "unknown 'bee': did you mean 'been'? known: been, cat, dog"
    assert unknown_choice(error | {"input": 3}) is None
    assert unknown_choice({"type": "missing", "input": "bee"}) is None
