"""Detection figures by hand, the stages of resumable work, word vectors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from calibration_support import CONFIGS
from gensim.models.keyedvectors import KeyedVectors
from torch import Tensor

from calibration.metrics import detection
from calibration.scoring import Scores
from calibration.stages import Stages
from calibration.word_vectors import class_vectors
from detectors.errors import CalibrationError, ConfigError, DataError

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def test_detection_by_hand() -> None:
    clean = torch.arange(100.0)
    figures = detection(clean, torch.tensor([99.5, 98.5, 96.0, -1.0]))
    assert figures is not None
    # pairs won: 100, 99, 96 and a tie, none
    assert figures["auroc"] == pytest.approx((100 + 99 + 96.5 + 0) / 400)
    assert figures["tpr_at_fpr_0.05"] == 0.75
    assert figures["tpr_at_fpr_0.01"] == 0.5
    # average precision: recall steps of 1/4 at precisions 1/1, 2/3, 3/7, 4/104
    assert figures["aupr"] == pytest.approx((1 + 2 / 3 + 3 / 7 + 4 / 104) / 4)
    assert detection(clean, torch.empty(0)) is None


def test_scores_survive_a_stage_in_order() -> None:
    components = {"b/z": torch.tensor([1.0, 2.0]), "a/y:q": torch.tensor([3.0, 4.0])}
    scores = Scores({"b": torch.ones(2)}, components, frozenset({"a/y:q"}), torch.eye(2), torch.tensor([0, 0]))
    back = Scores.from_tensors(dict(sorted(scores.tensors().items(), reverse=True)))
    assert list(back.components) == ["b/z", "a/y:q"]
    assert back.two_sided == {"a/y:q"}
    assert torch.equal(back.components["a/y:q"], components["a/y:q"])
    assert back.correct.tolist() == [True, False]


def test_finished_stages_are_not_made_again(tmp_path: Path) -> None:
    made: list[str] = []

    def make(name: str) -> Mapping[str, Tensor]:
        made.append(name)
        return {"x": torch.tensor([float(len(made))])}

    stages = Stages(tmp_path / "work", {"seed": 1}, resume=False)
    assert stages.run("one", lambda: make("one"))["x"].item() == 1.0
    again = Stages(tmp_path / "work", {"seed": 1}, resume=True)
    assert again.run("one", lambda: make("one"))["x"].item() == 1.0
    assert again.run("two", lambda: make("two"))["x"].item() == 2.0
    assert made == ["one", "two"]
    (tmp_path / "work" / "one.safetensors").write_bytes(b"damaged")
    assert again.run("one", lambda: make("one"))["x"].item() == 3.0


def test_unfinished_work_is_never_overwritten_nor_mixed(tmp_path: Path) -> None:
    Stages(tmp_path / "work", {"seed": 1}, resume=False)
    with pytest.raises(CalibrationError, match="holds unfinished work: add --resume to continue it"):
        Stages(tmp_path / "work", {"seed": 1}, resume=False)
    with pytest.raises(CalibrationError, match="was begun with another config, data or weights"):
        Stages(tmp_path / "work", {"seed": 2}, resume=True)


def test_the_shipped_digit_attributes() -> None:
    vectors = class_vectors(CONFIGS / "digit_attributes.txt", DIGITS, {})
    assert vectors.shape == (10, 20)
    assert len({tuple(row.tolist()) for row in vectors}) == 10
    loops = dict(zip(DIGITS, vectors[:, 0].tolist(), strict=True))
    assert loops["eight"] == 2.0
    assert loops["one"] == 0.0


def test_word_vectors_text_binary_case_and_mapping(tmp_path: Path) -> None:
    keyed = KeyedVectors(2)
    keyed.add_vectors(["car", "frog"], np.array([[1.0, 2.0], [3.0, 4.0]], np.float32))
    for name, binary in (("v.txt", False), ("v.bin", True)):
        keyed.save_word2vec_format(str(tmp_path / name), binary=binary)
        rows = class_vectors(tmp_path / name, ("automobile", "Frog"), {"automobile": "car"})
        assert rows.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    with pytest.raises(DataError, match=r"class 'automobile' has no vector in v\.txt .* \"automobile\" = \"\.\.\.\""):
        class_vectors(tmp_path / "v.txt", ("automobile", "frog"), {})
    with pytest.raises(ConfigError, match="words maps 'automobil', not a class: did you mean 'automobile'"):
        class_vectors(tmp_path / "v.txt", ("automobile", "frog"), {"automobil": "car"})
    with pytest.raises(ConfigError, match="cannot read the word vectors"):
        class_vectors(tmp_path / "none.txt", ("frog",), {})
    (tmp_path / "bad.txt").write_text("not a header\n")
    with pytest.raises(ConfigError, match=r"bad\.txt is not a word2vec file"):
        class_vectors(tmp_path / "bad.txt", ("frog",), {})
