"""The config of docs/calibration.md, followed by the letter on a classifier of one's own: it never does harm."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from parts import CLASSES, build, take_photos, train_on

from askance.calibration.config import Config, resolved
from askance.calibration.data import load_pools
from askance.calibration.pipeline import calibrate
from askance.evaluation import Evaluation

pytestmark = [pytest.mark.acceptance, pytest.mark.lasting, pytest.mark.timeout(1200)]  # a whole calibration
PAGE = Path(__file__).resolve().parent.parent / "docs" / "calibration.md"
COUNTS = {"train": 1000, "test": 1400}  # of 300 clean ones, three would decide what is caught at 1%
ROWS = [
    {"name": "deepfool", "kind": "deepfool"},
    {"name": "fgsm", "kind": "fgsm", "epsilon": "8/255"},
    {"name": "stopped", "kind": "stopped_pgd", "epsilon": "8/255", "margin": 3},
]


def config_of_the_docs() -> dict[str, Any]:
    blocks = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    first, sections = blocks[0], next(block for block in blocks if block.startswith("[training]"))
    return tomllib.loads(first + sections)


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """With our own images and weights, fewer of them, less training of the error estimator, and more attacks; the rest
    is the page's.
    """
    folder = tmp_path_factory.mktemp("parts")
    take_photos(folder / "parts", COUNTS)
    content = config_of_the_docs()
    classifier, data, evaluation = content["classifier"], content["data"], content["evaluation"]
    assert classifier["arguments"] == {"width": 64}
    classifier |= {"factory": f"{build.__module__}:{build.__name__}", "class_names": list(CLASSES)}
    content["detectors"]["introspection"]["cycle_steps"] = 100
    del classifier["output"], data["classes"], evaluation["out_of_distribution"]  # for those who need them
    content["splits"] = {
        "train": "train[:800]",
        "fit": "train",
        "held_out": "train[800:]",
        "calibrate": "test[:200]",
        "fuse": "test[200:400]",
        "evaluate": "test[400:]",
    }
    evaluation |= {"attacked_images": 40, "baselines": ["max_softmax"], "controls": []}
    evaluation["attacks"] = [{**row, "images": 40} for row in (*evaluation["attacks"], *ROWS)]
    config = resolved(Config.model_validate(content), folder)
    train_on(load_pools(config.data)["train"][:800], folder / classifier["weights"])
    return calibrate(resolved(config, folder), folder / "bundle").evaluation()


def test_the_classifier_is_worth_defending(followed: Evaluation) -> None:
    assert followed.classifier.accuracy > 0.85
    assert all(row.successful >= 20 for row in followed.attacks.values())


def test_no_row_is_below_the_untrained_score(followed: Evaluation) -> None:
    """What was learned from the ladder does not silence what needs no learning."""
    for name, auroc in followed.auroc.items():
        assert auroc["fused"] > auroc["fused_untrained"] - 0.005, name
        assert auroc["fused"] > 0.9, name


@pytest.mark.parametrize("rates", ["tpr_at_fpr_5", "tpr_at_fpr_1"])
def test_no_fewer_attacks_are_caught_than_by_the_untrained_score(followed: Evaluation, rates: str) -> None:
    """Not by more than an image or two of forty."""
    for name, caught in getattr(followed, rates).items():
        assert caught["fused"] >= caught["fused_untrained"] - 0.05, name
