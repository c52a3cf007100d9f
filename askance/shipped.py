"""The files that come along with the package, copied to where a person can read and change them."""

from __future__ import annotations

import shutil
from importlib.resources import as_file, files
from pathlib import Path

from askance.errors import ConfigError

FOLDERS = ("configs", "proto", "deploy")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.py", "*.pyc", "image")


def copy_shipped_files(folder: Path) -> None:
    """Copy configs/, proto/ and deploy/ into `folder`.

    Raises:
        ConfigError: the folder exists, or cannot be written.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists: choose another folder, or remove it first")
    for name in FOLDERS:
        with as_file(files("askance") / name) as source:
            try:
                shutil.copytree(source, folder / name, ignore=_LEFT_OUT)
            except OSError as error:
                raise ConfigError(f"cannot write {folder}: {error.strerror or error}") from None
