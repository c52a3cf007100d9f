"""Detection figures by hand, the stages of resumable work, word vectors."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from calibration_support import CONFIGS
from gensim.models.keyedvectors import KeyedVectors
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

from askance.calibration.metrics import (
    Separation,
    detection,
    detection_intervals,
    flag_rate_interval,
    separation,
    worst_case,
)
from askance.calibration.scoring import Scores
from askance.calibration.stages import Stages, alone_in
from askance.calibration.word_vectors import class_vectors
from askance.errors import CalibrationError, ConfigError, DataError
from askance.judgement import Readings
from askance.judgement.conformal import p_value, table

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
    components = {"b/z": np.array([1.0, 2.0]), "a/y:q": np.array([3.0, 4.0])}
    readings = Readings({"b": np.ones(2)}, components, frozenset({"a/y:q"}), np.eye(2))
    scores = Scores(readings, torch.tensor([0, 0]))
    back = Scores.from_tensors(dict(sorted(scores.tensors().items(), reverse=True)), ["b"])
    assert list(back.readings.components) == ["b/z", "a/y:q"]
    assert back.readings.two_sided == {"a/y:q"}
    assert np.array_equal(back.readings.components["a/y:q"], components["a/y:q"])
    assert np.array_equal(back.readings.logits, np.eye(2))
    assert back.predicted.tolist() == [0, 1]
    assert back.correct.tolist() == [True, False]


def test_finished_stages_are_not_made_again(tmp_path: Path) -> None:
    made: list[str] = []

    def make(name: str) -> Mapping[str, Tensor]:
        made.append(name)
        return {"x": torch.tensor([float(len(made))])}

    (tmp_path / "work").mkdir()
    stages = Stages(tmp_path / "work", {"seed": 1}, resume=False)
    assert stages.run("one", lambda: make("one"))["x"].item() == 1.0
    again = Stages(tmp_path / "work", {"seed": 1}, resume=True)
    assert again.run("one", lambda: make("one"))["x"].item() == 1.0
    assert again.run("two", lambda: make("two"))["x"].item() == 2.0
    assert made == ["one", "two"]
    (tmp_path / "work" / "one.safetensors").write_bytes(b"damaged")
    assert again.run("one", lambda: make("one"))["x"].item() == 3.0


def test_unfinished_work_is_never_overwritten_nor_mixed(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    Stages(tmp_path / "work", {"seed": 1}, resume=False)
    stages = Stages(tmp_path / "work", {"seed": 3}, resume=False)  # nothing was finished: nothing is lost
    stages.run("one", lambda: {"x": torch.ones(1)})
    with pytest.raises(CalibrationError, match="holds unfinished work: add --resume to continue it"):
        Stages(tmp_path / "work", {"seed": 1}, resume=False)
    with pytest.raises(CalibrationError, match="was begun with another classifier, data or words"):
        Stages(tmp_path / "work", {"seed": 2}, resume=True)


HOLD = """
import sys
from pathlib import Path
from askance.calibration.stages import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_do_not_work_in_one_folder(tmp_path: Path) -> None:
    """The second is refused at once, and nothing of the first is touched; one that was killed holds nothing."""
    folder = tmp_path / "bundle.partial"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        line = r"another calibration is at work in .*bundle\.partial: wait until it has ended, or choose another path"
        with pytest.raises(CalibrationError, match=line), alone_in(folder):
            raise AssertionError("two at once")
        other.kill()
    with alone_in(folder) as mine:
        assert mine == folder
    with alone_in(folder):  # let go of, though an error may keep the frame
        pass


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
    with pytest.raises(ConfigError, match=r"bad\.txt is not a word2vec or GloVe file: line 1 holds something else"):
        class_vectors(tmp_path / "bad.txt", ("frog",), {})


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 3), st.integers(0, 10_000))
def test_detection_is_scikit_learns(n: int, m: int, decimals: int, seed: int) -> None:
    """Ties included (few decimals make many)."""
    g = np.random.default_rng(seed)
    clean, attacked = g.normal(size=n).round(decimals), g.normal(1, size=m).round(decimals)
    figures = detection(torch.tensor(clean), torch.tensor(attacked))
    truth, scores = np.repeat([0, 1], [n, m]), np.concatenate([clean, attacked])
    false_positive, true_positive, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert figures is not None
    assert figures["auroc"] == pytest.approx(roc_auc_score(truth, scores))
    assert figures["aupr"] == pytest.approx(average_precision_score(truth, scores))
    for rate in (0.05, 0.01, 0.001):
        assert figures[f"tpr_at_fpr_{rate:g}"] == pytest.approx(true_positive[false_positive <= rate].max())


def test_bootstrap_intervals_cover_and_narrow() -> None:
    """The 95% interval holds the true AUROC, Phi(1 / sqrt 2), in about 95 of 100 draws, and narrows with more."""
    g = np.random.default_rng(0)
    truth, widths, covered = norm.cdf(1 / np.sqrt(2)), [], 0
    for _ in range(100):
        bounds = detection_intervals(torch.tensor(g.normal(size=300)), torch.tensor(g.normal(1, size=200)))
        assert bounds is not None
        low, high = bounds["auroc"]
        covered += low <= truth <= high
        widths.append(high - low)
    assert 88 <= covered <= 100
    more = detection_intervals(torch.tensor(g.normal(size=3000)), torch.tensor(g.normal(1, size=2000)))
    assert more is not None
    assert more["auroc"][1] - more["auroc"][0] < 0.5 * np.mean(widths)
    assert detection_intervals(torch.empty(0), torch.ones(1)) is None


def test_separation_is_the_auroc_of_detection_in_words() -> None:
    g = np.random.default_rng(0)
    pair = g.normal(size=50), g.normal(1, size=40)
    figures, intervals = detection(*pair), detection_intervals(*pair)
    assert figures is not None
    assert intervals is not None
    assert separation(*pair) == (figures["auroc"], *intervals["auroc"])
    assert Separation(0.8449, 0.78, 0.891).in_words == "0.84 (0.78 to 0.89)"


def test_flag_rate_interval_by_hand() -> None:
    """One score in the table, level 1/2: k = 1, and BetaBin(m, 1, 1) is uniform on 0 to m."""
    assert flag_rate_interval(0.5, 1, 99) == (2 / 99, 97 / 99)  # 1% each: P(up to 2) = 3%, P(up to 97) = 98%
    # two scores, level 1/3: k = 1, and P(j) is proportional to m + 1 - j: 3/6, 2/6, 1/6 for m = 2
    assert flag_rate_interval(1 / 3, 2, 2) == (0.0, 1.0)
    assert flag_rate_interval(0.01, 98, 1000) == (0.0, 0.0)  # the least p-value is 1/99
    low, high = flag_rate_interval(0.01, 99, 10_000)  # Beta(1, 99), but for 10,000 draws
    assert low == pytest.approx(1 - 0.975 ** (1 / 99), abs=2e-4)
    assert high == pytest.approx(1 - 0.025 ** (1 / 99), abs=2e-4)


def test_flag_rate_intervals_hold_what_tables_flag() -> None:
    """In 95% of simulated calibrations, or little more, where the binomial interval holds fewer than 91%."""
    n, m, level, trials = 200, 200, 0.05, 4000
    g = np.random.default_rng(0)
    pairs = zip(table(g.normal(size=(trials, n))), g.normal(size=(trials, m)), strict=True)
    rates = np.array([(p_value(images, clean) <= level).mean() for clean, images in pairs])
    low, high = flag_rate_interval(level, n, m)
    assert 0.94 <= ((rates >= low) & (rates <= high)).mean() <= 0.975
    least, most = np.array(binom.interval(0.95, m, level)) / m
    assert ((rates >= least) & (rates <= most)).mean() < 0.91
    assert (most - least) / (high - low) == pytest.approx(2 / 3, abs=0.1)


@settings(max_examples=50, deadline=None)
@given(st.integers(99, 3000), st.integers(20, 3000), st.sampled_from([0.01, 0.05, 0.1]))
def test_flag_rate_intervals_hold_the_mean_and_narrow(n: int, m: int, level: float) -> None:
    low, high = flag_rate_interval(level, n, m)
    assert 0 <= low <= math.floor(level * (n + 1) + 1e-9) / (n + 1) <= high <= 1
    least, most = flag_rate_interval(level, 20 * n, 20 * m)
    assert most - least < high - low


def test_worst_case_by_hand() -> None:
    scores = {"a": torch.tensor([5.0, 1.0, 3.0]), "b": torch.tensor([2.0, 4.0])}
    succeeded = {"a": torch.tensor([True, False, False]), "b": torch.tensor([True, True])}
    assert worst_case(scores, succeeded, 2).tolist() == [2.0, 4.0]
    assert worst_case(scores, succeeded, 1).tolist() == [2.0]
