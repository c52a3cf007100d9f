"""The files that come along with the package, copied to where a person can read and change them."""

from __future__ import annotations

import shutil
from importlib.resources import as_file, files
from pathlib import Path

from askance.errors import ConfigError, FileError
from askance.writing import writing

FOLDERS = ("configs", "proto", "deploy")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.py", "*.pyc", "image")


def copy_shipped_files(folder: Path) -> None:
    """Copy configs/, proto/ and deploy/ into `folder`.

    Raises:
        ConfigError: the folder exists.
        FileError: it cannot be written; then nothing of it is left.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists: choose another folder, or remove it first")
    try:
        with writing(folder):
            for name in FOLDERS:
                with as_file(files("askance") / name) as source:
                    shutil.copytree(source, folder / name, ignore=_LEFT_OUT)
    except FileError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
