"""Images made on another classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_support import digits_folder
from pydantic import ValidationError
from safetensors.torch import save_file
from toy import Trained

from askance.calibration.attacks import ATTACKS, PixelClassifier, Transfer, perturb
from askance.calibration.config import load_config
from askance.classifiers import DigitsCNN
from askance.errors import ConfigError

BIM: dict[str, Any] = {"kind": "bim", "epsilon": 0.2}


def transfer(weights: Path, attack: dict[str, Any] = BIM, **surrogate: Any) -> Transfer:
    of = {"factory": "digits_cnn", "weights": weights} | surrogate
    return Transfer.model_validate({"name": "t", "kind": "transfer", "surrogate": of, "attack": attack})


@pytest.fixture
def own(trained: Trained, tmp_path: Path) -> Path:
    """The classifier's own weights, which make the best of surrogates."""
    save_file(trained.classifier.state_dict(), tmp_path / "own.safetensors")
    return tmp_path / "own.safetensors"


def test_the_images_are_made_on_the_surrogate(trained: Trained, own: Path) -> None:
    images, labels = trained.part("evaluate")
    images, labels = images[:20], labels[:20]
    predict = PixelClassifier(trained.classifier, trained.preprocessing)
    bim = ATTACKS["bim"].model_validate({"name": "b", **BIM})
    there = perturb(predict, bim, images, labels, 0)
    assert torch.equal(perturb(predict, transfer(own), images, labels, 0), there)
    torch.manual_seed(0)
    blank = PixelClassifier(DigitsCNN().eval(), trained.preprocessing)  # whatever it says, the surrogate is attacked
    assert torch.equal(perturb(blank, transfer(own), images, labels, 0), there)


def test_its_identity_is_what_the_weights_hold(trained: Trained, own: Path, tmp_path: Path) -> None:
    save_file(trained.classifier.state_dict(), tmp_path / "copy.safetensors")
    other = {name: value + 1 for name, value in trained.classifier.state_dict().items()}
    save_file(other, tmp_path / "other.safetensors")
    first = transfer(own).identity()
    assert transfer(tmp_path / "copy.safetensors").identity() == first
    assert transfer(tmp_path / "other.safetensors").identity() != first
    assert transfer(own, BIM | {"epsilon": 0.1}).identity() != first
    assert str(tmp_path) not in str(first)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ({"kind": "bmi"}, r"attack.kind: unknown 'bmi': did you mean 'mim'"),
        ({}, r"attack.kind: unknown None"),
        ({"kind": "transfer"}, r"attack.kind: unknown 'transfer'"),
        ({"kind": "bim"}, r"attack.the key 'epsilon' is missing"),
        (BIM | {"epsilom": 1}, r"epsilom"),
        (BIM | {"target_rank": 1}, r"one that transfers cannot aim: leave target_rank out"),
    ],
)
def test_an_attack_that_cannot_transfer_is_refused(attack: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        transfer(Path("w.safetensors"), attack)


def test_what_can_be_refused_is_refused_before_any_work(own: Path, tmp_path: Path) -> None:
    transfer(own).check(10)
    with pytest.raises(ConfigError, match=r"the surrogate's weights .*none\.safetensors do not exist: put them there"):
        transfer(tmp_path / "none.safetensors").check(10)
    with pytest.raises(ConfigError, match="lenet"):
        transfer(own, factory="lenet").check(10)
    with pytest.raises(ConfigError, match='the loss "dlr" needs 3 classes, there are 2'):
        transfer(own, {"kind": "apgd", "epsilon": 0.1, "loss": "dlr"}).check(2)


def test_weights_are_looked_up_beside_the_config(tmp_path: Path) -> None:
    path = digits_folder(tmp_path)
    path.write_text(
        path.read_text()
        + """
[[evaluation.attacks]]
name = "t"
kind = "transfer"
surrogate = { factory = "digits_cnn", weights = "s.safetensors" }
attack = { kind = "pgd", epsilon = "8/255" }
"""
    )
    (found,) = [one for one in load_config(path).evaluation.attacks if isinstance(one, Transfer)]
    assert found.surrogate.weights == tmp_path / "s.safetensors"
