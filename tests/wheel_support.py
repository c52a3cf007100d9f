"""What the tests of installed wheels share: building one, and environments of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def build_wheel(source: Path, folder: Path) -> Path:
    """The wheel of a source tree, in `folder`."""
    shutil.rmtree(source / "build", ignore_errors=True)  # setuptools packs what an earlier build has left there
    command = [*PIP, "wheel", "--quiet", "--no-deps", "-w", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@dataclass(frozen=True)
class Users:
    """A user's folder with packages of their own, and an environment in which the wheel is installed."""

    folder: Path
    interpreter: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the environment's Python in the folder, whose own packages come first."""
        environment = os.environ | {"PYTHONPATH": str(self.folder)}
        command = [str(self.interpreter), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=240
        )

    def pip(self, *arguments: str | Path) -> None:
        """Run our pip on the environment, which has none."""
        command = [*PIP, "--python", str(self.interpreter), *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True)


def new_users(wheel: Path, folder: Path, home: Path) -> Users:
    """The wheel in an environment of its own; what it depends on is taken from this one."""
    venv.create(home)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    command = [*PIP, "install", "--quiet", "--no-deps", "--target", str(packages), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    return Users(folder, home / "bin" / "python")
