"""What the calibration's tests share: the digits config in a folder of its own, trained once."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from askance.calibration.config import Config, load_config
from askance.calibration.pipeline import calibrate
from askance.calibration.training import train
from askance.detectors import Bundle

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
ATTACKED = "attacked"


@dataclass(frozen=True)
class DigitsRun:
    """configs/digits.toml, trained and calibrated."""

    folder: Path
    config_path: Path
    config: Config
    training: dict[str, Any]
    bundle: Bundle


def digits_folder(folder: Path) -> Path:
    """A copy of the digits config and its attribute table; the path of the config."""
    for name in ("digits.toml", "digit_attributes.txt"):
        shutil.copy(CONFIGS / name, folder / name)
    return folder / "digits.toml"


def changed(text: str, *changes: tuple[str, str]) -> str:
    """A config with other words in the places of some that it has."""
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def run_digits(folder: Path) -> None:
    """Train and calibrate as the demo does; the attacked images are kept beside it."""
    config = load_config(digits_folder(folder))
    (folder / "training.json").write_text(json.dumps(train(config)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ASKANCE_CACHE", str(folder / ATTACKED))
        calibrate(config, folder / "bundle")


def digits_run_in(folder: Path) -> DigitsRun:
    """What `run_digits` has made, there or in a copy."""
    path, training = folder / "digits.toml", json.loads((folder / "training.json").read_text())
    return DigitsRun(folder, path, load_config(path), training, Bundle.open(folder / "bundle"))
