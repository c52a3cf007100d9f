"""Disks that are full, folders that are not ours to write, streams that nobody reads: one line, and nothing lost."""

from __future__ import annotations

import json
import os
import pwd
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from errno import ENOSPC
from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_support import DigitsRun, changed, digits_folder
from test_cli import fails

from askance.__main__ import run
from askance.calibration import pipeline
from askance.calibration.cache import ImageCache
from askance.calibration.config import load_config
from askance.calibration.training import train
from askance.detectors import Bundle, Capture
from askance.detectors.spool import spool
from askance.errors import FileError
from askance.writing import reserved, write_whole

QUICK = (
    ("cycles = 10", "cycles = 1"),
    ("cycle_steps = 200", "cycle_steps = 5"),
    ("[evaluation]", "[evaluation]\nladder = false\nbenign_images = 0"),
)
TOO_LARGE = "File too large: raise the limit on the size of files (ulimit -f)"


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def quick(digits_run: DigitsRun) -> Path:
    """A config whose calibration takes few seconds, attacks included."""
    path = digits_run.folder / "quick.toml"
    path.write_text(changed(digits_run.config_path.read_text(), *QUICK))
    return path


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody can write to, root neither."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"nothing can be mounted here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.acceptance
def test_a_calibration_on_a_full_disk_goes_on_where_it_was(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, fit = tmp_path / "bundle", pipeline._fit
    arguments = ["calibrate", str(quick), "--out", str(out)]
    capsys.readouterr()
    with ExitStack() as stack, monkeypatch.context() as patch:

        def filling(detector: Any, inputs: Any) -> Any:
            fitted = fit(detector, inputs)
            if detector.kind == "self_organizing_map":
                stack.enter_context(small_disk(200_000))
            return fitted

        patch.setattr(pipeline, "_fit", filling)
        assert run(arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    partial = tmp_path / "bundle.partial"
    assert line.startswith(f"askance: cannot write {partial}/fit-self_organizing_map-")
    assert line.endswith(f": {TOO_LARGE}; finished stages are kept: go on with --resume (in Python resume=True)")
    kept = sorted(path.name for path in partial.iterdir())
    assert [name.rpartition("-")[0] for name in kept[:-2]] == ["fit-introspection", "fit-library_network"]
    assert kept[-2:] == ["identity", "lock"]
    assert not out.exists()

    assert run([*arguments, "--resume"]) == 0
    assert capsys.readouterr().err.count("kept from before") == 2
    assert Bundle.open(out).manifest.id
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_a_bundle_that_cannot_be_published_leaves_its_stages(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    out = tmp_path / "bundle"
    arguments = ["calibrate", str(quick), "--out", str(out)]
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert run(arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(
        f"askance: cannot write {out}: No space left on device: make room there; finished stages are"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.partial"]
    assert run([*arguments, "--resume"]) == 0
    assert Bundle.open(out).manifest.id


@pytest.mark.parametrize(
    "arguments",
    [["calibrate", "{config}", "--out", "{place}/bundle"], ["files", "{place}/files"], ["train", "{config}"]],
    ids=lambda arguments: arguments[0],
)
def test_a_folder_that_cannot_be_written_costs_one_line(
    digits_run: DigitsRun, read_only: Path, arguments: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = digits_run.config_path
    if arguments[0] == "train":  # the weights' folder is the read-only one
        text = config.read_text().replace("weights/digits_cnn", f"{read_only}/weights/digits_cnn")
        config = digits_run.folder / "read-only.toml"
        config.write_text(text)
    capsys.readouterr()
    assert run([one.format(config=config, place=read_only) for one in arguments]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"askance: cannot write {read_only}/")
    assert line.endswith(": Read-only file system: choose a place that can be written")


def test_weights_that_do_not_fit_are_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = digits_folder(tmp_path)
    weights = tmp_path / "weights" / "digits_cnn.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"from before")
    with small_disk(10_000):
        line = fails(["train", str(config), "--overwrite"], capsys)  # one line: no epoch was trained
    assert line == f"askance: cannot write {weights}: {TOO_LARGE}"
    assert [path.read_bytes() for path in weights.parent.iterdir()] == [b"from before"]
    train(load_config(config), overwrite=True)
    assert [path.name for path in weights.parent.iterdir()] == [weights.name]


def test_figures_that_cannot_be_written_are_printed_and_the_old_file_stays(
    digits_run: DigitsRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "manifest.json"
    path.write_text("from before")
    capsys.readouterr()
    with small_disk(1000):
        assert run(["inspect", str(digits_run.bundle.path), "--json", str(path)]) == 2
    shown = capsys.readouterr()
    assert "fused AUROC" in shown.out
    assert shown.err == f"askance: cannot write {path}: {TOO_LARGE}\n"
    assert [one.read_text() for one in tmp_path.iterdir()] == ["from before"]
    assert run(["inspect", str(digits_run.bundle.path), "--json", "/dev/full"]) == 2
    assert capsys.readouterr().err == "askance: cannot write /dev/full: No space left on device: make room there\n"
    assert run(["inspect", str(digits_run.bundle.path), "--json", "/dev/null"]) == 0


def test_copied_files_are_there_all_or_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(2000):
        line = fails(["files", str(tmp_path / "files")], capsys)
    assert line.startswith(f"askance: cannot write {tmp_path / 'files'}: [Errno 27] File too large")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_costs_a_line_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, pixels = ImageCache(tmp_path / "cache"), torch.rand(50, 1, 8, 8)
    with small_disk(1000):
        cache.put("aa", pixels)
        cache.put("ab", pixels)
    said = capsys.readouterr().err
    assert said.startswith("attacked images are not kept for another run: cannot write ")
    assert len(said.splitlines()) == 1
    assert cache.get("aa") is None


def test_no_home_costs_lines_and_nothing_else(
    digits_run: DigitsRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose user has no entry in /etc/passwd."""

    def unknown(number: int) -> Any:
        raise KeyError(number)

    for name in ("HOME", "ASKANCE_CACHE", "XDG_CACHE_HOME", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    capsys.readouterr()
    assert run(["evaluate", str(digits_run.bundle.path), str(digits_run.config_path)]) == 0
    said = capsys.readouterr()
    assert "AUROC on successful attacks" in said.out
    why = "there is no home to keep a cache in: let ASKANCE_CACHE name a folder"
    assert f"what is finished is not kept for another run: {why}\n" in said.err
    assert said.err.count(f"attacked images are not kept for another run: {why}\n") == 1


@pytest.mark.parametrize("how", ["full", "missing"])
def test_no_room_for_what_training_revisits_is_one_line(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    if how == "missing":
        monkeypatch.setattr(tempfile, "gettempdir", missing)
        monkeypatch.setattr(tempfile, "_gettempdir", missing, raising=False)
    else:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    capture = Capture(torch.zeros(100, 2), {"a": torch.rand(100, 1000)})
    reason = {"full": "File too large", "missing": "No usable temporary directory found in ['/tmp']"}[how]
    with small_disk(100_000), pytest.raises(FileError) as caught:
        spool([capture], lambda one: one.activations["a"])
    assert str(caught.value) == (
        f"cannot write a temporary file for what training revisits: {reason}: "
        "make room there, or let TMPDIR name another folder"
    )


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(path)
    write_whole(link, b"one")
    assert link.is_symlink()
    assert path.read_bytes() == b"one"
    with reserved(path, 1000) as write:
        assert path.read_bytes() == b"one"
        write(b"two")
    assert path.read_bytes() == b"two"
    with pytest.raises(KeyboardInterrupt), reserved(path, 1000):
        raise KeyboardInterrupt
    with small_disk(10), pytest.raises(FileError, match=f"^cannot write {path}: File too large: raise the limit"):
        write_whole(path, b"three" * 10)
    assert path.read_bytes() == b"two"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "link"]


def piped(arguments: Sequence[str | Path], redirections: str) -> tuple[int, str, str]:
    """`askance ARGUMENTS` with a shell's redirections: exit code, standard output, standard error.

    {gone} in them stands for a pipe whose reader is gone.
    """
    reader, gone = os.pipe()
    os.close(reader)
    script = f'exec "$@" {redirections.format(gone=gone)}'
    command = ["bash", "-c", script, "bash", sys.executable, "-m", "askance", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, pass_fds=[gone])
    os.close(gone)
    return done.returncode, done.stdout, done.stderr


CANNOT = "askance: standard output cannot be written: "
OUTPUTS = {
    ">&-": (2, f"{CANNOT}bad file descriptor"),
    ">/dev/full": (2, f"{CANNOT}no space left on device"),
    ">&{gone}": (141, ""),
}


@pytest.mark.parametrize(("redirection", "outcome"), OUTPUTS.items(), ids=OUTPUTS)
@pytest.mark.parametrize("command", ["token", "--help", "inspect"])
def test_an_output_that_nobody_can_read(
    digits_run: DigitsRun, tmp_path: Path, command: str, redirection: str, outcome: tuple[int, str]
) -> None:
    written = tmp_path / "manifest.json"
    arguments: list[str | Path] = [command]
    if command == "inspect":
        arguments += [digits_run.bundle.path, "--json", written]
    code, _, said = piped(arguments, redirection)
    assert (code, said.rstrip("\n")) == outcome
    if command == "inspect":
        assert json.loads(written.read_text())["id"] == digits_run.bundle.manifest.id


@pytest.mark.acceptance
@pytest.mark.lasting
@pytest.mark.parametrize(("redirection", "outcome"), OUTPUTS.items(), ids=OUTPUTS)
def test_a_calibration_publishes_whatever_becomes_of_its_output(
    quick: Path, tmp_path: Path, redirection: str, outcome: tuple[int, str]
) -> None:
    out = tmp_path / "bundle"
    code, _, said = piped(["calibrate", quick, "--out", out], redirection)
    assert code == outcome[0]
    if outcome[1]:
        assert said.splitlines()[-1] == f"{outcome[1]}; the bundle is in {out}"
    assert "Traceback" not in said
    assert Bundle.open(out).manifest.id


@pytest.mark.acceptance
@pytest.mark.lasting
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>&{gone}"])
def test_progress_that_nobody_can_read_stops_no_work(quick: Path, tmp_path: Path, redirection: str) -> None:
    code, shown, _ = piped(["calibrate", quick, "--out", tmp_path / "bundle"], redirection)
    assert code == 0
    assert "AUROC on successful attacks" in shown
    assert Bundle.open(tmp_path / "bundle").manifest.id
    assert piped(["inspect", "nowhere"], redirection)[:2] == (2, "")


def test_attacks_that_never_succeed_are_published_as_that(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = quick.with_name("weak.toml")
    config.write_text(quick.read_text().replace("epsilon = 0.2", "epsilon = 0.00001"))
    out = tmp_path / "bundle"
    assert run(["calibrate", str(config), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "no attack succeeded (fgsm 0 of " in shown
    assert "AUROC" not in shown
    assert {row.successful for row in Bundle.open(out).evaluation().attacks.values()} == {0}
    assert run(["inspect", str(out)]) == 0
    assert "fused AUROC: no attack succeeded" in capsys.readouterr().out


SEEN = 'seen = [{ name = "weak", kind = "fgsm", epsilon = 0.00001 }]\nbaselines = ["lid"]\n'


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["calibrate", "--out", "{out}"], "the seen attack weak never succeeds on the calibration split: raise its"),
        (["evaluate", "{bundle}"], "no seen attack succeeds on the calibration split, and lid learns from them: raise"),
    ],
    ids=["calibrate", "evaluate"],
)
def test_seen_attacks_that_never_succeed_cost_one_line(
    digits_run: DigitsRun,
    quick: Path,
    tmp_path: Path,
    command: list[str],
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = quick.with_name("seen.toml")
    config.write_text(quick.read_text().replace("[evaluation]\n", f"[evaluation]\n{SEEN}"))
    arguments = [one.format(out=tmp_path / "bundle", bundle=digits_run.bundle.path) for one in command]
    capsys.readouterr()
    assert run([*arguments, str(config)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"askance: {line}")
    assert not (tmp_path / "bundle").exists()
