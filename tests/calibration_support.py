"""What the calibration's tests share: the digits config in a folder of its own, trained once."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from askance.calibration.config import Config, load_config
from askance.calibration.pipeline import calibrate
from askance.calibration.training import train
from askance.detectors import Bundle

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


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


def run_digits(folder: Path) -> DigitsRun:
    """Train and calibrate as the demo does."""
    path = digits_folder(folder)
    config = load_config(path)
    training = train(config)
    return DigitsRun(folder, path, config, training, calibrate(config, folder / "bundle"))
