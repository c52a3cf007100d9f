"""The files that come along with the package, copied to where a person can read and change them."""

from __future__ import annotations

import re
import shutil
from importlib.resources import as_file, files
from pathlib import Path

from askance.errors import ConfigError, FileError, did_you_mean
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


def shipped_config(name: str) -> str:
    """The text of a config that comes along; what it names of the files beside it is named by whole paths.

    Raises:
        ConfigError: there is none of that name.
    """
    with as_file(files("askance") / "configs") as folder:
        known = {path.stem: path for path in sorted(folder.resolve().glob("*.toml"))}
        if name not in known:
            raise ConfigError(f"there is no config {name!r}: {did_you_mean(name, known)}")

        def whole(quoted: re.Match[str]) -> str:
            path = known[name].parent / quoted[1]
            return f'"{path.as_posix()}"' if path.is_file() else quoted[0]

        return re.sub(r'"([^"\n]+)"', whole, known[name].read_text(encoding="utf-8"))
