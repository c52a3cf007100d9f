"""The contract of an attack, over every member of ATTACKS."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import Tensor
from toy import Trained

from askance.calibration.attacks import ATTACKS, AimedAttack, Attack, PixelClassifier, perturb
from askance.calibration.config import AttackConfig
from askance.calibration.option_tables import TABLES, written

PAGE = Path(__file__).resolve().parent.parent / "docs" / "calibration.md"
BUDGET = 0.15
BRIEF: dict[str, Any] = {
    "steps": 50,
    "searches": 2,
    "rounds": 3,
    "samples": 8,
    "smoothness": 0.1,
    "learning_rate": 0.05,
    "initial_weight": 1.0,
    "queries": 100,
    "evaluations": 10,
    "attack": {"kind": "bim", "epsilon": BUDGET},
}
SEED = 11


@pytest.fixture(params=list(ATTACKS))
def kind(request: pytest.FixtureRequest, surrogate: None) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def surrogate(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What an attack that needs another classifier gets: the same one, from a file."""
    path = tmp_path_factory.mktemp("surrogate") / "digits.safetensors"
    save_file(trained.classifier.state_dict(), path)
    BRIEF["surrogate"] = {"factory": "digits_cnn", "weights": str(path)}


def options_of(kind: str, **more: Any) -> dict[str, Any]:
    fields = ATTACKS[kind].model_fields
    budget = {"epsilon": BUDGET} if "epsilon" in fields else {}
    return {"name": "a", "kind": kind} | budget | {n: v for n, v in BRIEF.items() if n in fields} | more


@pytest.fixture
def attack(kind: str) -> Attack:
    return ATTACKS[kind].model_validate(options_of(kind))


@pytest.fixture
def predict(trained: Trained) -> PixelClassifier:
    return PixelClassifier(trained.classifier, trained.preprocessing)


@pytest.fixture
def starts(trained: Trained) -> tuple[Tensor, Tensor]:
    images, labels = trained.part("evaluate")
    return images[:8], labels[:8]


def test_pixels_shape_and_budget_are_kept(
    attack: Attack, predict: PixelClassifier, starts: tuple[Tensor, Tensor]
) -> None:
    images, labels = starts
    attacked = perturb(predict, attack, images, labels, SEED)
    assert attacked.shape == images.shape
    assert attacked.dtype == torch.float32
    assert not attacked.requires_grad
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert not torch.equal(attacked, images)
    if "epsilon" in type(attack).model_fields:
        assert (attacked - images).abs().max() <= BUDGET + 1e-6


def test_the_seed_is_all_that_is_random_and_no_trace_is_left(
    attack: Attack, predict: PixelClassifier, starts: tuple[Tensor, Tensor]
) -> None:
    images, labels = starts
    before, given = torch.random.get_rng_state(), images.clone()
    gradients = [None if p.grad is None else p.grad.clone() for p in predict.parameters()]
    first = perturb(predict, attack, images, labels, SEED)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(images, given)
    torch.rand(3)
    assert torch.equal(perturb(predict, attack, images, labels, SEED), first)
    for parameter, gradient in zip(predict.parameters(), gradients, strict=True):
        assert parameter.requires_grad
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=0)


def test_an_attack_that_can_aim_takes_targets(kind: str, predict: PixelClassifier, trained: Trained) -> None:
    if not issubclass(ATTACKS[kind], AimedAttack):
        with pytest.raises(ValidationError, match="target_rank"):
            ATTACKS[kind].model_validate(options_of(kind, target_rank=1))
        return
    images, labels = trained.part("evaluate")
    targets = (labels + 1) % 10
    aimed = ATTACKS[kind].model_validate(options_of(kind, target_rank=1) | {"epsilon": 0.5})
    with torch.no_grad():
        attacked = perturb(predict, aimed, images[:40], targets[:40], SEED)
        before, after = (predict(x).softmax(dim=1).gather(1, targets[:40, None]) for x in (images[:40], attacked))
    assert (after > before).double().mean() > 0.7


def test_options_survive_json_and_a_process(attack: Attack) -> None:
    read: Attack = TypeAdapter(AttackConfig).validate_json(attack.model_dump_json())
    assert read == attack
    assert type(read) is type(attack)
    assert pickle.loads(pickle.dumps(attack)) == attack


def test_an_unknown_option_is_refused(kind: str) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        ATTACKS[kind].model_validate(options_of(kind, epsilom=0.1))


def test_the_docs_hold_the_tables_of_the_families() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert all(table() in page for table in TABLES.values()), (
        "run: python -m askance.calibration.option_tables docs/calibration.md"
    )
    assert written(page) == page
