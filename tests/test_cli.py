"""The command line: what it prints, how it fails (one line, exit code 2), and that `--help` is instant."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from calibration_support import DigitsRun
from PIL import Image

from askance.__main__ import run
from askance.answers import Answer, Prediction, Verdict
from askance.calibration.inputs import load_inputs
from askance.classifiers import build_classifier
from askance.output import error_lines, print_verdicts, verdict_rows
from askance.service.launch import launched


def fails(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run, expect exit code 2 and one line on stderr; return it."""
    capsys.readouterr()
    assert run(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("askance: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["srve"], "No such command 'srve'. Did you mean 'serve'"),
        (["serve", "B", "--prot", "1"], "No such option '--prot': did you mean '--port'? known: --config, --host, "),
        (["--verison"], "No such option '--verison': did you mean '--version'? known: --version, --help"),
        (["token", "--xyzzy"], "No such option '--xyzzy': known: --help"),
        (["serve", "B", "--port", "many"], "Invalid value for '--port'"),
        (["calibrate", "configs/digits.toml"], "Missing option '--out'"),
        (["calibrate", "nowhere.toml", "--out", "B"], "cannot read the config nowhere.toml"),
        (
            ["serve", "nowhere", "--port", "0", "--metrics-port", "0"],
            "nowhere is not a bundle: it has no readable manifest.json",
        ),
        (["inspect", "nowhere"], "nowhere is not a bundle"),
        (["serve", "nowhere", "--config", "none.toml"], "none.toml cannot be read: No such file"),
        (["serve", "nowhere", "--port", "70000"], "port: input should be less than or equal to 65535, got 70000"),
        (["screen", "none.png", "--target", "localhost"], "expected HOST:PORT, got 'localhost'"),
        (["screen", "none.png", "--target", "http://localhost:1"], "expected HOST:PORT, got 'http://localhost:1'"),
        (["screen", __file__, "--target", "127.0.0.1:1"], "nothing answers at 127.0.0.1:1"),
        (["calibrate", "nowhere.toml", "--out", "B", "--resum"], "No such option '--resum': did you mean '--resume'"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
def test_mistakes_cost_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = fails(arguments, capsys)
    assert any(part in line for part in message.split("|")), line


def test_a_working_folder_that_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run(["inspect", str(tmp_path / "bundle")]) == 2
    assert capsys.readouterr().err == "askance: the working folder has been removed: change to one that is there\n"


def test_bare_askance_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "\n  calibrate " in capsys.readouterr().out


def test_help_is_instant_and_names_every_command() -> None:
    """No torch, no gRPC: what makes a start slow is not imported."""
    code = (
        "import sys; from askance.__main__ import run; code = run(['--help']);"
        "print(code, sorted(m for m in ('torch', 'grpc', 'numpy', 'pydantic', 'rich') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    of_bundles = ("calibrate", "evaluate", "recalibrate", "serve", "screen", "inspect", "sign")
    for command in ("demo", "init", "config", "layers", "validate", "train", *of_bundles):
        assert f"\n  {command} " in done.stdout


def test_the_module_runs_as_the_script_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "askance", "inspect", "none"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "askance: none is not a bundle: it has no readable manifest.json\n"


def test_inspect_shows_an_intact_bundle(
    digits_run: DigitsRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(digits_run.bundle.path), "--json", str(tmp_path / "m.json")]) == 0
    shown = capsys.readouterr().out
    manifest = digits_run.bundle.manifest
    assert f"{manifest.id} (intact: 11 files verified)" in shown
    words = r"sentinels   32 images answered as at calibration \(16 CLEAN, (\d+ SUSPECT, )?\d+ ADVERSARIAL\)"
    assert re.search(words, shown), shown
    assert "250 clean images, fused score 400" in shown
    for kind in ("library_network", "introspection", "self_organizing_map", "semantic_signature", "fused"):
        assert kind in shown
    assert json.loads((tmp_path / "m.json").read_text())["id"] == manifest.id


def test_a_damaged_bundle_is_refused_by_every_command(
    digits_run: DigitsRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(digits_run.bundle.path, copy)
    file = copy / "introspection.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    for arguments in (
        ["inspect", str(copy)],
        ["serve", str(copy), "--port", "0", "--metrics-port", "0"],
        ["evaluate", str(copy), str(digits_run.config_path)],
    ):
        assert "introspection.safetensors has been altered or truncated" in fails(arguments, capsys)


def test_evaluate_writes_json(digits_run: DigitsRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "e.json"
    assert run(["evaluate", str(digits_run.bundle.path), str(digits_run.config_path), "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["auroc"]["pgd"]["fused"] >= 0.95
    assert "AUROC on successful attacks" in capsys.readouterr().out
    message = fails(["evaluate", "none", "none", "--json", "/nowhere/e.json"], capsys)
    assert "cannot write /nowhere/e.json: there is no folder /nowhere" in message
    message = fails(["inspect", str(digits_run.bundle.path), "--json", str(tmp_path)], capsys)
    assert message == f"askance: cannot write {tmp_path}: Is a directory"


def test_serve_and_screen_for_real(digits_run: DigitsRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands as they are typed: a server process, PNG files, a table, JSON, and an exit code."""
    images = load_inputs(digits_run.config).splits["evaluate"]
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(images.x[0, 0].numpy()).save(good)
    bad.write_bytes(good.read_bytes()[:60])
    wide = tmp_path / "wide.png"
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(wide)
    arguments = [
        "-m",
        "askance",
        "serve",
        str(digits_run.bundle.path),
        "--port",
        "0",
        "--metrics-port",
        "0",
        "--disclose",
    ]
    with launched(arguments) as serving:
        target = ["--target", serving.target]
        assert run(["screen", str(good), *target, "--explain", "--json", str(tmp_path / "s.json")]) == 0
        shown = capsys.readouterr().out
        assert "good.png: library network (" in shown
        (row,) = json.loads((tmp_path / "s.json").read_text())["images"]
        assert row["bundle_id"] == digits_run.bundle.manifest.id
        screen = digits_run.bundle.screen(build_classifier)
        direct = screen(images.pixels()[:1])[0]
        assert not isinstance(direct, Exception)
        assert direct.screening is not None
        assert row["prediction"]["label"] == direct.label
        assert row["verdict"] == direct.verdict
        assert row["p_value"] == pytest.approx(direct.p_value)
        for sent, computed in zip(row["detectors"], direct.screening.detectors, strict=True):
            assert sent["name"] == computed.name
            assert sent["score"] == pytest.approx(computed.score, rel=1e-4, abs=1e-5)

        assert run(["screen", str(good), str(bad), str(wide), *target, "--json", str(tmp_path / "s.json")]) == 2
        rows = json.loads((tmp_path / "s.json").read_text())["images"]
        assert "verdict" in rows[0]
        assert rows[1]["code"] == "INVALID_ARGUMENT"
        assert "8 x 8" in rows[2]["error"] or "8x8" in rows[2]["error"]

        # a file that cannot be read is a row of its own; one named twice is two
        capsys.readouterr()
        assert run(["screen", "none.png", *target]) == 2
        said = capsys.readouterr()
        assert "not screened" in said.out
        assert said.err == "askance: none.png cannot be read: No such file or directory\n"
        assert "cannot be read" not in said.out
        names = [str(good), "none.png", "no.png", str(good), "none.png"]
        assert run(["screen", *names, *target, "--json", str(tmp_path / "s.json")]) == 2
        rows = json.loads((tmp_path / "s.json").read_text())["images"]
        assert [row["image"] for row in rows] == names
        said = capsys.readouterr()
        for line in ("none.png cannot be read: No such", "no.png cannot be read: No such"):
            assert f"{said.out}\n{said.err}".count(f"askance: {line}") == 1
        assert run(["screen", str(bad), str(good), str(bad), *target]) == 2
        said = capsys.readouterr()
        assert said.err.startswith(f"askance: {bad}: encoded: expected an intact image")
        assert (said.err.count("\n"), said.out.count("intact")) == (1, 0)
        assert [row.get("code") for row in rows] == [None, "NOT_FOUND", "NOT_FOUND", None, "NOT_FOUND"]
        assert rows[0]["p_value"] == rows[3]["p_value"]

        line = fails(["serve", str(digits_run.bundle.path), "--port", str(serving.port), "--metrics-port", "0"], capsys)
        assert f"port {serving.port} on 127.0.0.1 is in use" in line
    line = fails(["screen", str(good), *target], capsys)
    assert line == f"askance: nothing answers at {serving.target}: is `askance serve` running there?"


def test_train_reports_its_accuracy(digits_run: DigitsRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = digits_run.config_path.read_text().replace("epochs = 30", "epochs = 1")
    path = tmp_path / "quick.toml"
    path.write_text(text)
    shutil.copy(digits_run.folder / "digit_attributes.txt", tmp_path)
    assert run(["train", str(path)]) == 0
    assert "trained on 697 images; accuracy " in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "weights" / "digits_cnn.safetensors").exists()
    text = text.replace("digits_cnn.safetensors", "digits_cnn.pt")
    path.write_text(text)
    assert "set classifier.weights to a .safetensors path" in fails(["train", str(path)], capsys)


def test_training_is_seeded(digits_run: DigitsRun, tmp_path: Path) -> None:
    from askance.calibration.config import load_config
    from askance.calibration.training import train
    from askance.classifiers import load_weights
    from askance.errors import ConfigError

    shutil.copy(digits_run.folder / "digit_attributes.txt", tmp_path)
    path = tmp_path / "quick.toml"
    path.write_text(digits_run.config_path.read_text().replace("epochs = 30", "epochs = 1"))
    config = load_config(path)
    train(config)
    first = load_weights(config.classifier.weights)
    torch.manual_seed(99)
    with pytest.raises(ConfigError, match=r"exists: training would replace these weights; add --overwrite"):
        train(config)
    train(config, overwrite=True)
    second = load_weights(config.classifier.weights)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_each_thing_that_went_wrong_is_told_once() -> None:
    """With the images that it befell; a line that begins with the file's name already is not given another."""
    denied, unread = {"error": "explain takes a role", "code": "UNAUTHENTICATED"}, {"error": "c.png cannot be read"}
    rows = [
        {"image": "a.png", **denied},
        {"image": "c.png", **unread},
        {"image": "b.png", **denied},
        {"image": "d.png"},
    ]
    assert error_lines(rows) == ["a.png, b.png: explain takes a role", "c.png cannot be read"]


@pytest.mark.parametrize("argument", ["--version", "-V"])
def test_the_version_is_told(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([argument]) == 0
    assert capsys.readouterr().out == f"askance {version('askance')}\n"


@pytest.mark.parametrize("verdict", [*Verdict, None])
def test_every_verdict_is_shown(verdict: Verdict | None, capsys: pytest.CaptureFixture[str]) -> None:
    prediction = None if verdict is Verdict.BLOCKED else Prediction(0, "cat", (0.5, 0.5))
    rows = verdict_rows([Path("a.png")], [Answer(prediction, verdict, reason="so")], {})
    print_verdicts(rows, explain=True)
    shown = "-" if verdict is None else verdict.value
    assert f" {shown} " in capsys.readouterr().out
