"""The wheel, installed beside a user's own packages called `service` and `classifiers`: commands and face work."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from service_support import publish_tiny
from wheel_support import Users, new_users

ROOT = Path(__file__).resolve().parent.parent
OWN = {
    "service/__init__.py": "raise RuntimeError('the users own service was imported')\n",
    "detectors/__init__.py": "raise RuntimeError('the users own detectors were imported')\n",
    "calibration.py": "raise RuntimeError('the users own calibration was imported')\n",
    "classifiers/__init__.py": "",
    "classifiers/tiny.py": """
from torch import nn

class TinyClassifier(nn.Module):
    def __init__(self, channels=1):
        super().__init__()
        self.hidden = nn.Linear(channels * 64, 12)
        self.output = nn.Linear(12, 4)

    def forward(self, images):
        return self.output(self.hidden(images.flatten(1)).relu())
""",
}


@pytest.fixture(scope="module")
def users(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Users:
    """A user with packages called as parts of ours are."""
    folder = tmp_path_factory.mktemp("users")
    for name, content in OWN.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    return new_users(wheel, folder, tmp_path_factory.mktemp("environment"))


def test_it_claims_one_name_and_brings_everything(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"askance"}
    for expected in (
        "askance/py.typed",
        "askance/configs/digits.toml",
        "askance/configs/server.toml",
        "askance/configs/weights/lenet_mnist.safetensors",
        "askance/drawing/page.html",
        "askance/proto/askance/v1/screening.proto",
        "askance/proto/inference/inference.proto",
        "askance/service/pb/askance/v1/screening_pb2.pyi",
        "askance/deploy/prometheus/rules.yml",
        "askance/deploy/kubernetes/deployment.yaml",
        "askance/deploy/grafana/dashboards/askance.json",
    ):
        assert expected in names
    assert not [name for name in names if "digits_cnn" in name or "/tests/" in name]


@pytest.mark.acceptance
@pytest.mark.lasting
def test_every_command_starts_beside_packages_of_the_same_name(users: Users) -> None:
    where = users.run("-c", "import askance; print(askance.__file__)")
    assert where.stdout.startswith(str(users.interpreter.parent.parent)), where.stderr
    ours = ("init", "config", "layers", "validate", "train", "calibrate", "evaluate", "recalibrate")
    for command in ("demo", *ours, "serve", "screen", "token", "inspect", "report", "files"):
        done = users.run("-m", "askance", command, "--help")
        assert (done.returncode, done.stderr) == (0, "")
    done = users.run("-m", "askance", "calibrate", "nowhere.toml", "--out", "B")
    assert (done.returncode, done.stderr) == (
        2,
        "askance: cannot read the config nowhere.toml: No such file or directory\n",
    )
    done = users.run("-m", "askance", "files", "shipped")
    assert done.returncode == 0
    assert (users.folder / "shipped" / "proto" / "askance" / "v1" / "screening.proto").exists()
    assert (users.folder / "shipped" / "configs" / "digits.toml").exists()


DRIVE = """
import sys
import numpy as np
import askance
from askance.service.launch import launched

image = np.random.default_rng(1).integers(0, 256, (1, 8, 8), np.uint8)
with askance.open("bundle", allowed_factories=["classifiers.tiny"]) as screen:
    direct = screen(image)
options = ["--port", "0", "--metrics-port", "0", "--disclose", "--allow-factory", "classifiers.tiny"]
arguments = ["-m", "askance", "serve", "bundle", *options]
with launched(arguments) as serving, askance.Client(serving.target) as client:
    remote = client.screen(image)
assert remote.verdict is direct.verdict and remote.label == direct.label, (remote, direct)
assert abs(remote.p_value - direct.p_value) < 1e-9
assert remote.bundle_id == direct.bundle_id != ""
print(direct.verdict, remote.label)
"""


def test_serve_open_and_client_with_a_classifier_of_the_users_own(users: Users) -> None:
    """The classifier lives in the user's own package `classifiers`."""
    publish_tiny(users.folder / "bundle", "classifiers.tiny:TinyClassifier")
    done = users.run("-c", DRIVE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] in ("CLEAN", "SUSPECT", "ADVERSARIAL")


USERS_FILE = '''
"""A user's own module."""

from pathlib import Path

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset

import askance
from askance import Answer, Verdict


def publish(classifier: nn.Module, data: Dataset[tuple[Tensor, int]], arrays: tuple[Tensor, Tensor]) -> float:
    """From a live classifier to a bundle's figures."""
    bundle: askance.Bundle = askance.calibrate(
        classifier,
        {"fit": data, "calibrate": arrays, "fuse": arrays, "evaluate": data},
        out=Path("bundle"),
        mean=(0.5,),
        std=(0.5,),
        detectors={"self_organizing_map": {"map_layers": ["fc"]}},
        attacks=[{"name": "pgd", "kind": "pgd", "epsilon": "8/255"}],
    )
    evaluation: askance.Evaluation = bundle.evaluation()
    return evaluation.auroc["pgd"]["fused"] - evaluation.clean_flag_rate["suspect"]


def judge(folder: Path) -> list[str]:
    """Screen files in process and one over the wire."""
    with askance.open("bundle", device="cpu") as screen:
        answer: Answer = screen(folder / "one.png")
        answers: list[Answer] = screen([folder / "a.png", np.zeros((8, 8), np.uint8)])
    with askance.Client("127.0.0.1:8500") as client:
        remote = client.screen(folder / "one.png")
    flagged = answer.p_value is not None and answer.p_value <= 0.01
    names = [one.verdict.value for one in (remote, *answers) if one.verdict in (Verdict.CLEAN, Verdict.BLOCKED)]
    return [*names, str(flagged), askance.__version__]
'''


@pytest.mark.acceptance
@pytest.mark.lasting
def test_a_users_file_is_checked_strictly(users: Users, tmp_path: Path) -> None:
    """mypy strict finds our types in the face and in what a package of one's own derives from, and finds a mistake."""
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(USERS_FILE)
    bad.write_text(
        "import askance\n\n"
        "def f(client: askance.Client) -> bool:\n"
        '    return client.screen("a.png").p_value <= 0.01\n'  # it may be None
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path / 'cache'}"]
    command += ["--python-executable", str(users.interpreter), str(good), str(bad)]
    command += map(str, (ROOT / "examples" / "own_detector").glob("*.py"))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 1, done.stdout
    assert errors[0] == 'bad.py:4: error: Unsupported operand types for >= ("float" and "None")  [operator]'
