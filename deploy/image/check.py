"""Check the image: build the Dockerfile for real, look into what came out, and try it; `make image-check`.

The base is made with debootstrap, and pip's downloads are made here, by pip as it is configured here: the build itself
needs Debian's packages and nothing else. Base and downloads are kept in build/image; images are not.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from reporting import ENCLOSED, KEPT, CheckError, expect, failed, output, verified

from askance.calibration.config import load_config
from askance.calibration.inputs import load_inputs
from askance.calibration.pipeline import calibrate
from askance.calibration.training import train

ROOT = Path(__file__).resolve().parents[2]
TRIAL = Path(__file__).with_name("trial.py")
SUITE, PYTHON = "bookworm", "3.11"  # the Dockerfile's Debian, and the Python that it has
TOOLS = ("buildah", "debootstrap", "unshare", "nsenter", "setpriv", "ip")
BUILD_TOOLS = ("cc", "gcc", "g++", "c++", "clang", "ld", "as", "make", "pip", "pip3", "git")
BUILD_PACKAGES = ("pip", "setuptools", "wheel", "ensurepip")
VARIANTS = {"askance": "torch,tracing", "askance-slim": "tracing"}
MOST_MEGABYTES = {"askance": 1300, "askance-slim": 400}
LEFT_OUT = ("usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man", "var/cache/apt/archives")
LEFTOVERS = ("wheels", "source", "etc/pip.conf", "root/.cache", "root/.config")


class Storage:
    """Images and containers of buildah in a folder of their own.

    Args:
        folder: where they are; deleting it deletes them.
    """

    def __init__(self, folder: Path) -> None:
        self._options = ("--root", str(folder / "root"), "--runroot", str(folder / "run"), "--storage-driver", "vfs")
        scratch = folder / "scratch"
        scratch.mkdir(parents=True)
        self._environment = {**os.environ, "TMPDIR": str(scratch)}

    def __call__(self, *arguments: str) -> str:
        """Run buildah and return what it prints."""
        return output("buildah", *self._options, *arguments, environment=self._environment).strip()

    def image_of(self, archive: Path, name: str) -> None:
        """Make an image of a root file system."""
        container = self("from", "scratch")
        self("add", container, str(archive), "/")
        self("commit", "--rm", container, name)

    def build(self, name: str, base: str, extras: str, wheels: Path, pip_configuration: Path) -> None:
        """Build the Dockerfile, in Docker's format: the other one has no health check."""
        self(
            *("build", "--isolation", "chroot", "--format", "docker", "--tag", name),
            *("--build-arg", f"BASE={base}", "--build-arg", f"EXTRAS={extras}", "--build-arg", "TORCH_INDEX="),
            *("--build-context", f"wheels={wheels}", "--secret", f"id=pip,src={pip_configuration}"),
            str(ROOT),
        )

    def config(self, name: str) -> dict[str, Any]:
        """What the image says about how it is to be run."""
        found: dict[str, Any] = json.loads(self("inspect", "--type", "image", name))["Docker"]["config"]
        return found

    def unpacked(self, name: str) -> Path:
        """The image's root file system, a copy of its own."""
        return Path(self("mount", self("from", "--pull-never", name)))


def base_archive(mirror: str) -> Path:
    """Debian's smallest system as an archive, made once."""
    archive = KEPT / f"{SUITE}.tar"
    if not archive.exists():
        with tempfile.TemporaryDirectory(dir=KEPT) as folder:
            tree, made = Path(folder) / "tree", Path(folder) / archive.name
            output("debootstrap", "--variant=minbase", SUITE, str(tree), mirror)
            for left_out in LEFT_OUT:  # of bookworm-slim, too
                shutil.rmtree(tree / left_out)
            output("tar", "--directory", str(tree), "--create", "--file", str(made), ".")
            made.rename(archive)
    return archive


def download(torch_index: str) -> Path:
    """Wheels of all that the image installs, by the pip of this environment and as it is configured."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheels = KEPT / "wheels"
    output(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(wheels)),
        *("--python-version", PYTHON, "--only-binary", ":all:", "--constraint", str(ROOT / "constraints.txt")),
        *(("--extra-index-url", torch_index) if torch_index else ()),
        *project["project"]["dependencies"],
        *(one for extra in ("torch", "tracing") for one in project["project"]["optional-dependencies"][extra]),
        *project["build-system"]["requires"],
    )
    return wheels


def publish(folder: Path) -> tuple[Path, Path]:
    """A bundle of scikit-learn's digits, and an image to ask about."""
    config = load_config(ROOT / "configs" / "digits.toml")
    weights = folder / "classifier.safetensors"
    config = config.model_copy(update={"classifier": config.classifier.model_copy(update={"weights": weights})})
    digit = folder / "digit.png"
    with redirect_stderr(io.StringIO()):  # their progress
        train(config)
        bundle = calibrate(config, folder / "bundle").path
        pixels = load_inputs(config).splits["evaluate"].pixels()[0, 0].numpy()
    Image.fromarray(np.round(255 * pixels).astype(np.uint8)).save(digit)
    return bundle, digit


def check_config(config: dict[str, Any]) -> None:
    """How the image is to be run is as promised."""
    user = config["User"]
    expect(
        re.fullmatch(r"[1-9]\d*:[1-9]\d*", user) is not None, f"the user is {user!r}, not a number other than root's"
    )
    verified("not root", f"USER {user}")
    entry, command = config["Entrypoint"], config["Cmd"]
    expect((entry, command[:2]) == (["askance"], ["serve", "/bundle"]), f"starts as {entry} {command}")
    verified("starts the server, without a shell", f"ENTRYPOINT {entry} CMD {command}")
    health = config.get("Healthcheck", {}).get("Test", [""])
    expect(health[0] == "CMD" and "/healthz" in health[-1], f"the health check is {health}")
    verified("a health check", f"HEALTHCHECK {' '.join(health[:3])} ... /healthz")
    ports = sorted(config["ExposedPorts"])
    expect(ports == ["8500/tcp", "9500/tcp"], f"exposes {ports}")
    verified("ports", f"EXPOSE {' '.join(ports)}")


def check_content(root: Path, path: Sequence[str], most_megabytes: int) -> None:
    """Nothing is in the image that only builds."""
    programs = [
        folder + "/" + name for folder in path for name in BUILD_TOOLS if os.path.lexists(f"{root}{folder}/{name}")
    ]
    places = (root / "opt/askance/lib", root / "usr/lib")
    packages = [
        str(found.parent.relative_to(root))
        for place in places
        for name in BUILD_PACKAGES
        for found in place.glob(f"python3*/**/{name}/__init__.py")
    ]
    cuda = ["torch for CUDA (--torch-index says where its CPU builds are)"] * any(
        (root / "opt/askance/lib").glob("python3*/site-packages/nvidia")
    )
    leftovers = [name for name in LEFTOVERS if os.path.lexists(root / name)]
    found = programs + packages + leftovers + cuda
    expect(not found, f"the image holds {', '.join(found)}")
    verified("no compiler, no installer", f"none of {', '.join(BUILD_TOOLS[:4])}, {', '.join(BUILD_PACKAGES)}, ...")
    megabytes = sum(file.lstat().st_size for file in root.rglob("*") if not file.is_dir()) / 1e6
    expect(megabytes <= most_megabytes, f"the image has {megabytes:.0f} MB, expected at most {most_megabytes}")
    verified("size", f"{megabytes:.0f} MB uncompressed")


def check(mirror: str, torch_index: str) -> None:
    """Everything, in a folder that is gone afterwards."""
    expect(os.geteuid() == 0, "needs root, for debootstrap and for mounts")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    expect(not missing, f"needs {', '.join(missing)}: apt-get install buildah debootstrap util-linux iproute2")
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=KEPT, prefix="check-") as made:
        folder = Path(made)
        storage = Storage(folder / "storage")
        archive, wheels = base_archive(mirror), download(torch_index)
        offline = folder / "pip.conf"
        offline.write_text("[global]\nno-index = true\n")
        storage.image_of(archive, "base")
        bundle, digit = publish(folder)
        for name, extras in VARIANTS.items():
            start = time.perf_counter()
            storage.build(name, "localhost/base", extras, wheels, offline)
            seconds = time.perf_counter() - start
            verified("builds", f"{name} ({extras}) in {seconds:.0f} s, on Debian {SUITE} made with debootstrap")
            config = storage.config(name)
            check_config(config)
            root = storage.unpacked(name)
            environment = dict(line.split("=", 1) for line in config["Env"])
            check_content(root, environment["PATH"].split(":"), MOST_MEGABYTES[name])
            output("chown", "-R", config["User"], str(bundle))  # its files are their owner's alone
            described = folder / f"{name}.json"
            described.write_text(json.dumps(config))
            # A network of its own: the image's own ports are free there, and nobody else can reach them.
            trial = (sys.executable, str(TRIAL), str(root), str(described), str(bundle), str(digit))
            code = subprocess.run((*ENCLOSED, "--net", *trial), check=False).returncode
            if code != 0:  # it has said why
                raise typer.Exit(1)


def main(
    mirror: Annotated[str, typer.Option(help="Of Debian's packages, for the base.")] = "http://deb.debian.org/debian",
    torch_index: Annotated[
        str, typer.Option(help="Where torch's CPU builds are, if pip as it is configured does not find them.")
    ] = "",
) -> None:
    """Build the image, verify what it promises, and clean up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is cleaned up then, too
    start = time.perf_counter()
    try:
        check(mirror, torch_index)
    except CheckError as error:
        raise failed(error) from None
    typer.echo(f"all verified in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    typer.run(main)
