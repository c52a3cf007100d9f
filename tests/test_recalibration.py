"""`askance recalibrate`: new tables from recent images, the same detectors, and no lesson from an attacker."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from calibration_support import DigitsRun

from askance.__main__ import run
from askance.answers import Verdict
from askance.calibration.attacks import PGD, PixelClassifier, perturb
from askance.calibration.inputs import load_inputs
from askance.calibration.recalibration import MOST_TIMES, distance
from askance.classifiers import build_classifier
from askance.detectors import Bundle


def npz(path: Path, pixels: torch.Tensor) -> str:
    np.savez(path, x=(pixels[:, 0] * 255).round().clamp(0, 255).to(torch.uint8).numpy())
    return f"npz:{path}"


def recent(digits_run: DigitsRun) -> torch.Tensor:
    """Clean images that a classifier might be asked: darker than those that it was calibrated on."""
    splits = load_inputs(digits_run.config).splits
    return torch.cat([splits["evaluate"].pixels(), splits["fuse"].pixels()]) * 0.95


def test_new_tables_and_nothing_else(digits_run: DigitsRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, out = digits_run.bundle, tmp_path / "new"
    source = npz(tmp_path / "recent.npz", recent(digits_run))
    capsys.readouterr()
    assert run(["recalibrate", str(old.path), "--from", source, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "flagged (adversarial)" in shown
    new = Bundle.open(out)
    assert f"bundle {new.manifest.id[:12]} in {out}: askance serve {out}\n" in shown
    assert new.manifest.id != old.manifest.id
    for kind, detector in new.detectors().items():
        before = old.detectors()[kind].state_dict()
        assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())
    assert (new.manifest.calibration.samples, new.manifest.calibration.fusion_samples) == (350, 350)
    noted = new.manifest.provenance["recalibrated"]
    assert (noted["from"], noted["images"], noted["forced"]) == (old.manifest.id, 700, False)
    assert set(noted["shift"]) == {*new.calibration().tables, "fused", "unfamiliar", "doubtful"}
    for name, table in new.calibration().reasons.items():
        assert name in shown
        assert len(table) == 350
        assert not np.array_equal(table, old.calibration().reasons[name])
    # what the tables promise holds for images like these: they flag 5% of those that they were made of, about
    with closing(new.screen(build_classifier)) as screen:
        answers = screen(recent(digits_run)[:200])
    flagged = sum(answer.verdict is not Verdict.CLEAN for answer in answers if not isinstance(answer, Exception))
    assert flagged <= 24
    line = "exists and a bundle is never changed"
    assert run(["recalibrate", str(old.path), "--from", source, "--out", str(out)]) == 2
    assert line in capsys.readouterr().err


def test_what_looks_like_attacks_is_refused_unless_forced(
    digits_run: DigitsRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where more than ten times as many are flagged ADVERSARIAL as promised: here half are attacked."""
    inputs = load_inputs(digits_run.config)
    labels = torch.cat([inputs.splits["evaluate"].y, inputs.splits["fuse"].y])
    images, pgd = recent(digits_run), PGD(name="pgd", kind="pgd", epsilon=0.2)
    images[::2] = perturb(PixelClassifier(inputs.classifier, inputs.preprocessing), pgd, images[::2], labels[::2], 0)
    source = npz(tmp_path / "attacked.npz", images)
    arguments = ["recalibrate", str(digits_run.bundle.path), "--from", source, "--out", str(tmp_path / "new")]
    capsys.readouterr()
    assert run(arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "of the 700 images are flagged ADVERSARIAL, of clean ones it would be 1.0%" in line
    assert f"more than {MOST_TIMES:g} times as many may be attacks" in line
    assert not (tmp_path / "new").exists()
    assert run([*arguments, "--force"]) == 0
    assert Bundle.open(tmp_path / "new").manifest.provenance["recalibrated"]["forced"] is True


@pytest.mark.parametrize("place", ["inner", "report/inner", "../bundle/inner"])
def test_a_bundle_inside_another_is_refused(
    digits_run: DigitsRun, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = shutil.copytree(digits_run.bundle.path, tmp_path / "bundle")
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    source = npz(tmp_path / "recent.npz", recent(digits_run))
    capsys.readouterr()
    assert run(["recalibrate", str(old), "--from", source, "--out", str(old / place)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"is inside the bundle {old}, which is never changed: choose another path")
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "npz:few.npz"], "needs at least 99 calibration samples, got 20"),
        (["--from", "npz:wide.npz"], "the images are [1, 9, 9], the classifier takes [1, 8, 8]"),
        (["--from", "nzp:few.npz"], "unknown data source 'nzp:few.npz': did you mean 'npz'?"),
        (["--form", "npz:few.npz"], "No such option '--form': did you mean '--from'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_cost_one_line(
    arguments: list[str],
    message: str,
    digits_run: DigitsRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    npz(tmp_path / "few.npz", recent(digits_run)[:40])
    npz(tmp_path / "wide.npz", torch.zeros(300, 1, 9, 9))
    capsys.readouterr()
    assert run(["recalibrate", str(digits_run.bundle.path), *arguments, "--out", "new"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "new").exists()


def test_the_distance_is_kolmogorov_and_smirnovs() -> None:
    one = np.array([1.0, 2, 3, 4])
    assert distance(one, one) == 0
    assert distance(one, one + 10) == 1
    assert distance(one, np.array([1.0, 2, 5, 6])) == pytest.approx(0.5)
    assert distance(one, np.array([2.5])) == pytest.approx(0.5)
