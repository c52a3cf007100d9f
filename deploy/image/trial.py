"""Try the image's root file system: run it as it is to be run, ask it, probe it, and stop it.

A container without a container runtime: namespaces, a read-only root, no privileges. It shares the network of this
process, so that the real ports can be asked: start this one under `unshare --net`, as check.py does.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import typer
from reporting import CheckError, expect, failed, output, verified

from askance.service.client import Client
from askance.service.client_messages import ServiceError
from askance.service.launch import Serving

START_SECONDS, STOP_SECONDS = 120.0, 40.0
CLIENTS, LOAD_SECONDS = 4, 2.0  # who asks while the server is told to stop, and for how long before that

# What a container runtime does: the image read-only, the bundle too, the usual devices, and no privileges.
ENTER = """
root=$1 bundle=$2
shift 2
mkdir --parents "$root/bundle"
mount --bind "$root" "$root"
mount --options remount,bind,ro,nosuid "$root"
mount --bind "$bundle" "$root/bundle"
mount --options remount,bind,ro,nosuid "$root/bundle"
mount --types proc proc "$root/proc"
mount --types sysfs --options ro sysfs "$root/sys"
mount --types tmpfs --options mode=755 tmpfs "$root/dev"
for device in null zero full random urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
exec chroot "$root" "$@"
"""


@dataclass(frozen=True)
class Container:
    """The image's process, and how to run another beside it.

    Attributes:
        process: `unshare`, which ends as the image's process does.
        pid: of the image's process, seen from here.
        unprivileged: the command's beginning that drops all privileges and sets the image's environment.
    """

    process: subprocess.Popen[bytes]
    pid: int
    unprivileged: tuple[str, ...]

    def inside(self, *command: str, privileged: bool = False) -> subprocess.CompletedProcess[str]:
        """Run `command` beside the image's process, as its user or as root."""
        enter = ("nsenter", "--target", str(self.pid), "--mount", "--pid", "--root", "--wd=/")
        prefix = () if privileged else self.unprivileged
        return subprocess.run([*enter, *prefix, *command], capture_output=True, text=True, check=False, timeout=60)


@contextmanager
def started(root: Path, config: dict[str, Any], bundle: Path, log: Path) -> Iterator[Container]:
    """The image as its configuration says, while the block lasts; what it says goes to `log`."""
    user, group = config["User"].split(":")
    unprivileged = (
        *("setpriv", "--reuid", user, "--regid", group, "--clear-groups"),
        *("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
        *("env", "--ignore-environment", "HOME=/", *config["Env"]),
    )
    isolated = ("unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child")
    shell = ("sh", "-ec", ENTER, "enter", str(root), str(bundle))
    command = [*isolated, *shell, *unprivileged, *config["Entrypoint"], *config["Cmd"]]
    with log.open("w") as said, subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT) as process:
        try:
            yield Container(process, entered(process, int(user), log), unprivileged)
        finally:
            process.kill()  # and the child with it


def entered(process: subprocess.Popen[bytes], user: int, log: Path) -> int:
    """The image's process, once it is `user`'s: then it has its own root, too."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        pids = children.read_text().split()
        if pids and Path(f"/proc/{pids[0]}").stat().st_uid == user:
            return int(pids[0])
        time.sleep(0.01)
    raise CheckError(f"cannot be started: {log.read_text().strip()}")


def wait_until_serving(process: subprocess.Popen[bytes], log: Path) -> Serving:
    """Wait for the line that a server says when it serves."""
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        for line in log.read_text().splitlines():
            if (serving := Serving.parse(line)) is not None:
                return serving
        time.sleep(0.05)
    raise CheckError(f"does not serve: {(log.read_text().splitlines() or ['it says nothing'])[-1]}")


def check_process(container: Container, user: str) -> None:
    """The kernel's word on what the process may do."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{container.pid}/status").read_text().splitlines() if ":\t" in line
    )
    expect(set(status["Uid"].split()) == {user}, f"the process has the user ids {status['Uid']}")
    capabilities = {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    expect({int(mask, 16) for mask in capabilities} == {0}, f"the process has capabilities: {capabilities}")
    expect(status["NoNewPrivs"] == "1", "the process may gain privileges")
    verified("runs without privileges", f"uid {user}, no capabilities, no new privileges, process 1 of its namespace")
    for path in ("/new", "/bundle/new", "/tmp/new", "/opt/askance/new"):
        tried = container.inside("touch", path, privileged=True)
        expect("Read-only file system" in tried.stderr, f"{path} can be written: the file system is not read-only")
    verified("runs on a read-only file system", "not even root can write to /, /tmp, /opt/askance, /bundle")


def check_answers(serving: Serving, digit: Path) -> None:
    """A client outside asks about an image."""
    verdicts = digit.with_name("verdicts.json")
    askance = Path(sys.executable).with_name("askance")
    output(str(askance), "screen", str(digit), "--target", serving.target, "--json", str(verdicts))
    answer = json.loads(verdicts.read_text())["images"][0]
    expect(answer["bundle_id"].startswith(serving.bundle_id), "the answer is another bundle's")
    name, verdict = answer["prediction"]["label"], answer["verdict"]
    verified("answers", f"askance screen digit.png: a {name}, {verdict}, by bundle {serving.bundle_id}")


def check_drain(container: Container, serving: Serving, digit: Path) -> None:
    """SIGTERM under load: every accepted request is answered, then the process ends with 0."""
    content = digit.read_bytes()
    answered, refusals = [0] * CLIENTS, [""] * CLIENTS

    def ask(number: int) -> None:
        with Client(serving.target) as client:
            try:
                while True:
                    client.screen(content)
                    answered[number] += 1
            except ServiceError as error:
                refusals[number] = str(error) if error.code is grpc.StatusCode.UNAVAILABLE else f"{error.code}: {error}"

    clients = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    time.sleep(LOAD_SECONDS)
    expect(not any(refusals), f"refused before it was told to stop: {refusals}")
    expect(all(answered), f"clients without an answer: {answered}")
    start = time.perf_counter()
    os.kill(container.pid, signal.SIGTERM)
    try:
        code = container.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        raise CheckError(f"still there {STOP_SECONDS:g} s after SIGTERM") from None
    seconds = time.perf_counter() - start
    for client in clients:
        client.join(STOP_SECONDS)
    expect(code == 0, f"exit code {code} after SIGTERM")
    lost = [said for said in refusals if re.match(r"the server is draining|nothing answers", said) is None]
    expect(not lost, f"a request was lost when the server stopped: {lost}")
    verified("drains on SIGTERM", f"{sum(answered)} requests answered, none lost; exit code 0 after {seconds:.1f} s")


def check_health(container: Container, probe: list[str], *, serving: bool) -> None:
    """The health check's own command, inside, gives what it should."""
    code = container.inside(*probe).returncode
    expect(
        (code == 0) is serving,
        f"the health check ends with {code} while the server is {'' if serving else 'not '}serving",
    )


def main(root: Path, config_file: Path, bundle: Path, digit: Path) -> None:
    """Try the image unpacked at ROOT, whose configuration CONFIG_FILE holds, with BUNDLE, by asking about DIGIT."""
    config: dict[str, Any] = json.loads(config_file.read_text())
    probe = config["Healthcheck"]["Test"][1:]
    log = digit.with_name("server.log")
    try:
        output("ip", "link", "set", "lo", "up")
        start = time.perf_counter()
        with started(root, config, bundle, log) as container:
            check_health(container, probe, serving=False)
            serving = wait_until_serving(container.process, log)
            verified("starts", f"serves after {time.perf_counter() - start:.1f} s on {serving.host}:{serving.port}")
            check_health(container, probe, serving=True)
            verified("health check", "fails while the server loads, succeeds while it serves")
            check_process(container, config["User"].split(":")[0])
            check_answers(serving, digit)
            check_drain(container, serving, digit)
    except CheckError as error:
        raise failed(error) from None


if __name__ == "__main__":
    typer.run(main)
