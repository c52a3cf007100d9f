"""`askance init`: a config that `askance calibrate` takes as it is, with the reasons beside what was chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from calibration_support import DigitsRun

from askance.__main__ import run
from askance.calibration.config import load_config
from askance.calibration.draft import _toml
from askance.calibration.sharing import OPTIMISTIC
from askance.calibration.sources import load_source
from askance.calibration.subject import CIFAR10, IMAGENET, MNIST, Subject
from askance.calibration.validation import mistakes_in
from askance.detectors import ConstellationOptions
from askance.errors import ConfigError


@pytest.fixture
def named(digits_run: DigitsRun) -> list[str]:
    """What every call says of the digits classifier."""
    return ["init", "--classifier", "digits_cnn", "--weights", str(digits_run.config.classifier.weights)]


def said(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int = 0) -> str:
    capsys.readouterr()
    assert run(arguments) == code, capsys.readouterr().err
    found = capsys.readouterr()
    return found.out if code == 0 else found.err


def test_the_config_is_what_calibrate_takes(
    named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one pool; paths that were relative to the working folder are so to the config's."""
    digits = load_source("sklearn:digits")
    np.savez(tmp_path / "d.npz", x=digits.x[:, 0].numpy(), y=digits.y.numpy(), classes=digits.classes)
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    out = Path("configs/my digits.toml")
    shown = said(capsys, [*named, "--data", "npz:d.npz", "--trained-on", "none", "--out", str(out)])
    assert "layers: conv1, conv2, fc1, fc2\n" in shown
    assert "splits: fit 898, calibrate 269, fuse 269, evaluate 359\n" in shown
    assert f"{out} is written: read it, then askance calibrate {out} --out BUNDLE\n" in shown
    text = out.read_text()
    assert 'source = "npz:../d.npz"' in text
    assert mistakes_in(out) == []
    config = load_config(out)
    assert config.name == "my-digits"
    # the normalisation that it was trained with is 0.306 and 0.377, of the usual ones 0.5 is the nearest
    assert (config.classifier.preprocessing.mean, config.classifier.preprocessing.std) == ((0.5,), (0.5,))
    wanted = config.detectors.wanted()
    assert wanted["library_network"].model_dump(exclude_none=True) == {
        "rows": 224,
        "library_layers": ("conv1", "conv2", "fc1", "fc2"),
        "neighbors": 3,
        "softmax": False,
        "sampled_neurons": 2048,
    }
    assert wanted["introspection"].model_dump()["hidden_layers"] == ("relu3", "fc2")
    assert wanted["self_organizing_map"].model_dump()["side"] == 14
    assert wanted["constellation"] == ConstellationOptions(displacement_layers=("conv1", "conv2"))
    assert config.evaluation.ladder
    assert [one.kind for one in (*config.evaluation.seen, *config.evaluation.attacks)] == ["fgsm", "pgd"]
    assert "# The classifier is taken to have been trained on none of these images." in text
    # what is there is never replaced
    line = said(capsys, [*named, "--data", "npz:d.npz", "--trained-on", "none", "--out", str(out)], 2)
    assert line == f"askance: {out} exists: choose another path, or remove it first\n"
    assert out.read_text() == text


def test_images_that_were_all_trained_on_are_warned_of(
    named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.toml"
    scale = ["--mean", "0.306", "--std", "0.377"]
    shown = said(capsys, [*named, *scale, "--data", "sklearn:digits", "--trained-on", "all", "--out", str(out)])
    assert f"warning: {OPTIMISTIC}\n" in shown
    text = out.read_text()
    assert f"# WARNING: {OPTIMISTIC}." in text
    assert "# as given\nmean = [0.306]\nstd = [0.377]\n" in text


def test_a_dry_run_writes_nothing_and_shows_what_each_detector_gives(
    named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scale = ["--mean", "0.306", "--std", "0.377"]
    shown = said(capsys, [*named, *scale, "--data", "sklearn:digits", "--trained-on", "none", "--dry-run"])
    assert "of 898 images, to see what each detector gives" in shown
    for words in ("library_network", "rows", "introspection: knn agreement", "quantization error"):
        assert words in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data", "sklearn:digits", "--out", "c.toml"],
            "give such as --test-data; or say of these --trained-on none",
        ),
        (["--data", "sklearn:digits"], "expected --out CONFIG, or --dry-run"),
        (["--data", "x", "--out", "/nowhere/c.toml"], "cannot write /nowhere/c.toml: there is no folder /nowhere"),
        (["--data", "sklearn:digit", "--out", "c.toml"], "unknown data source 'sklearn:digit'"),
        (
            ["--data", "skleran:digits", "--out", "c.toml"],
            "unknown data source 'skleran:digits': did you mean 'sklearn'",
        ),
        (
            ["--data", "sklearn:digits", "--trained-on", "al", "--out", "c.toml"],
            "'al' is not one of 'train', 'none', 'all'",
        ),
        (["--data", "sklearn:digits", "--test-dat", "x"], "No such option '--test-dat': did you mean '--test-data'?"),
        (["--data", "sklearn:digits", "--mean", "0.3", "--out", "c.toml"], "mean and std go together: give both"),
        (["--data", "sklearn:digits", "--mean", "a", "--out", "c.toml"], "expected numbers with commas between them"),
        (
            ["--data", "sklearn:digits", "--mean", "0.3,0.3", "--std", "1,1", "--out", "c.toml"],
            "mean and std need one number for each of the 1 channels",
        ),
        (
            ["--data", "sklearn:digits", "--shape", "1,9,9", "--out", "c.toml"],
            "the images are [1, 8, 8], not [1, 9, 9]: only image files are scaled",
        ),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else None,
)
def test_mistakes_cost_one_line_and_leave_no_file(
    named: list[str],
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = said(capsys, [*named, *arguments], 2)
    assert len(line.splitlines()) == 1
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_usual_normalisations_by_classifier_and_images() -> None:
    def first(factory: str, channels: int, side: int) -> object:
        return next(iter(Subject(factory, Path("w")).scales(channels, side).values()))

    assert first("torchvision:resnet18", 3, 32) == IMAGENET
    assert first("mine:build", 3, 32) == CIFAR10
    assert first("mine:build", 3, 64) == ((0.5,) * 3, (0.5,) * 3)
    assert first("mine:build", 1, 28) == MNIST
    given = Subject("mine:build", Path("w"), mean=(0.1,), std=(0.2,)).scales(1, 28)
    assert given == {"given": ((0.1,), (0.2,))}


def test_arguments_as_toml_spells_them() -> None:
    import tomllib

    arguments = {"classes": 3, "a b": [1.5, True, "é\n"], "inner": {"x": {}}}
    assert tomllib.loads(f"a = {_toml(arguments)}")["a"] == arguments
    with pytest.raises(ConfigError, match="an argument is null"):
        _toml({"weights": None})


def test_class_names_from_the_command_line_or_a_file(
    named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = load_source("sklearn:digits")
    np.savez(tmp_path / "unlabelled.npz", x=digits.x[:, 0].numpy())
    np.savez(tmp_path / "labelled.npz", x=digits.x[:, 0].numpy(), y=digits.y.numpy(), classes=digits.classes)
    names = [f"digit {i}" for i in range(10)]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    for data in ("unlabelled", "labelled"):
        for i, given in enumerate((",".join(names), str(tmp_path / "names.txt"))):
            out = tmp_path / f"{data}{i}.toml"
            asked = ["--data", f"npz:{tmp_path / f'{data}.npz'}", "--trained-on", "none", "--class-names", given]
            said(capsys, [*named, *asked, "--out", str(out)])
            assert load_config(out).classifier.class_names == tuple(names)
            assert mistakes_in(out) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("a,b,a,c,d,e,f,g,h,i", "two classes are called 'a'"),
        ("a,b", "2 class names"),
        ("nine,eight,seven,six,five,four,three,two,one,zero", "'nine'"),  # the data's own names in another order
    ],
)
def test_class_names_that_cannot_be(
    named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], names: str, message: str
) -> None:
    asked = ["--data", "sklearn:digits", "--trained-on", "none", "--class-names", names]
    error = said(capsys, [*named, *asked, "--out", str(tmp_path / "c.toml")], code=2)
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "c.toml").exists()


def test_many_class_names_are_no_path(named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of more characters than a file's name can have; and a file that is not there, or no text, is told in a line."""
    asked = [*named, "--data", "sklearn:digits", "--trained-on", "none", "--out", str(tmp_path / "c.toml")]
    names = ",".join(f"{i}{'x' * 40}" for i in range(10))
    said(capsys, [*asked, "--class-names", names])
    assert load_config(tmp_path / "c.toml").classifier.class_names == tuple(names.split(","))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for file, why in (("none.txt", "No such file"), ("binary", "it is no UTF-8 text")):
        shown = said(capsys, [*asked, "--class-names", str(tmp_path / file)], code=2)
        assert why in " ".join(shown.replace("│", " ").split())
