"""The record of docs/operations.md: a real Prometheus and Alertmanager watch a live server that is attacked.

`python tools/operations.py` takes a quarter of an hour and the Debian packages prometheus and prometheus-alertmanager.
It trains and calibrates the demo's classifier, serves it, sends clean images for ten minutes, adds PGD images for
three, and writes what happened into docs/operations.md and docs/images/operations.png.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import torch
import typer
from matplotlib import pyplot as plt

from askance.calibration.attacks import PGD, PixelClassifier, perturb
from askance.calibration.config import load_config
from askance.calibration.inputs import load_inputs
from askance.calibration.pipeline import calibrate
from askance.calibration.progress import say
from askance.calibration.training import train
from askance.errors import AskanceError
from askance.service.client import Client
from askance.service.launch import launched

ROOT = Path(__file__).resolve().parent.parent
PAGE, PICTURE = ROOT / "docs" / "operations.md", ROOT / "docs" / "images" / "operations.png"
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
ROUTES = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
BEGIN, END = "<!-- record: begin -->", "<!-- record: end -->"
CLEAN_RATE, ATTACK_RATE = 20.0, 5.0  # images a second
AFTER = 90.0  # seconds of clean traffic once the attack is over
# The shipped rules look back over minutes and hours: too long for a record of minutes.
SHORTER = {"5m": "30s", "10m": "1m", "15m": "1m", "30m": "1m", "1h": "2m"}
FLAGGED = 'rate(askance_detector_flags_total{detector="fused", level="adversarial"}[30s])'
SHARE = f"sum({FLAGGED}) / sum(rate(askance_verdicts_total[30s]))"
TOLERATED = "askance:flags_tolerated:increase5m / askance:judged:increase5m"


@dataclass
class Notification:
    """One message of Alertmanager's to the webhook.

    Attributes:
        when: Unix time.
        receiver: of the route.
        status: "firing" or "resolved".
        alerts: names.
    """

    when: float
    receiver: str
    status: str
    alerts: list[str]


@dataclass
class Webhook:
    """Receives notifications.

    Attributes:
        port: where.
        received: so far.
    """

    port: int
    received: list[Notification] = field(default_factory=list)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def webhook() -> Iterator[Webhook]:
    """A receiver as an operator's chat or pager would be."""
    received: list[Notification] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            names = [alert["labels"]["alertname"] for alert in content["alerts"]]
            received.append(Notification(time.time(), self.path.strip("/"), content["status"], names))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Webhook(server.server_address[1], received)
        server.shutdown()


@contextmanager
def running(command: list[str], log: Path, ready: str) -> Iterator[None]:
    """A program of the operator's, once the URL `ready` answers; ended with the block."""
    if shutil.which(command[0]) is None:
        raise AskanceError(f"{command[0]} is not installed: apt-get install {command[0]}")
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            while process.poll() is None:
                try:
                    urllib.request.urlopen(ready, timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.2)
            else:
                raise AskanceError(f"{command[0]} ended with exit code {process.returncode}: {log.read_text()[-300:]}")
            yield
        finally:
            process.terminate()


class Prometheus:
    """Asks a Prometheus.

    Args:
        url: of its HTTP API.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def _ask(self, path: str, **parameters: Any) -> Any:
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as a:
            return json.load(a)["data"]["result"]

    def over(self, query: str, start: float, end: float) -> list[tuple[float, float]]:
        """(Unix time, value) of a query that gives one series, every second."""
        found = self._ask("query_range", query=query, start=start, end=end, step=1)
        return [(float(when), float(value)) for when, value in found[0]["values"]] if found else []

    def firing(self, start: float, end: float) -> dict[str, float]:
        """{alert: when it first fired}."""
        found = self._ask("query_range", query='ALERTS{alertstate="firing"}', start=start, end=end, step=1)
        first: dict[str, float] = {}
        for series in found:
            name, when = series["metric"]["alertname"], float(series["values"][0][0])
            first[name] = min(when, first.get(name, when))
        return first


def send(target: str, images: torch.Tensor, rate: float, seconds: float) -> int:
    """Send images one after the other, evenly, for a while; how many were."""
    pixels = list(images.numpy())
    start = time.monotonic()
    with Client(target) as client:
        for sent in itertools.count():
            due = sent / rate
            if due >= seconds:
                return sent
            time.sleep(max(0.0, start + due - time.monotonic()))
            client.screen(pixels[sent % len(pixels)])
    raise AssertionError("unreachable")


def in_background(work: Callable[[], object]) -> threading.Thread:
    """Start a thread; a failure of it shows as missing traffic."""
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def configured(folder: Path, metrics_port: int, alertmanager_port: int, webhook_port: int) -> tuple[Path, Path]:
    """The shipped rules with short windows, the shipped routes to our webhook, and what ties them together."""
    duration = re.compile(r"(?<=\[)\w+(?=\])|(?<=for: )\w+")
    rules = duration.sub(lambda match: SHORTER.get(match[0], match[0]), RULES.read_text())
    (folder / "rules.yml").write_text(rules)
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        "rule_files: [rules.yml]\n"
        "scrape_configs:\n"
        f"  - {{job_name: askance, static_configs: [{{targets: ['127.0.0.1:{metrics_port}']}}]}}\n"
        "alerting:\n"
        f"  alertmanagers: [{{static_configs: [{{targets: ['127.0.0.1:{alertmanager_port}']}}]}}]\n"
    )
    routes = ROUTES.read_text().replace("127.0.0.1:9000", f"127.0.0.1:{webhook_port}")
    (folder / "alertmanager.yml").write_text(routes)
    return folder / "prometheus.yml", folder / "alertmanager.yml"


def demo_bundle(folder: Path) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """The demo's bundle; clean images that nothing was fitted on, and those of them that PGD makes it get wrong."""
    config = load_config(ROOT / "configs" / "digits.toml")
    weights = folder / "weights.safetensors"
    config = config.model_copy(update={"classifier": config.classifier.model_copy(update={"weights": weights})})
    train(config)
    bundle = calibrate(config, folder / "bundle")
    inputs = load_inputs(config)
    images = inputs.splits["evaluate"]
    predict = PixelClassifier(inputs.classifier, config.classifier.preprocessing)
    (attack,) = (one for one in config.evaluation.attacks if isinstance(one, PGD))
    with torch.no_grad():
        right = predict(images.pixels()).argmax(dim=1) == images.y
    attacked = perturb(predict, attack, images.pixels(), images.y, attack.seed)
    with torch.no_grad():
        wrong = predict(attacked).argmax(dim=1) != images.y
    return bundle.path, images.pixels(), attacked[right & wrong]


def main(
    clean: Annotated[float, typer.Option(help="Seconds of clean traffic.")] = 600.0,
    attack: Annotated[float, typer.Option(help="Seconds of attack.")] = 180.0,
) -> None:
    """Record an attack."""
    mpl.use("Agg")
    with tempfile.TemporaryDirectory(prefix="askance-operations-") as name, ExitStack() as stack:
        folder = Path(name)
        path, images, attacked = demo_bundle(folder)
        serve = ["-m", "askance", "serve", str(path), "--port", "0", "--metrics-port", "0"]
        serving = stack.enter_context(launched(serve))
        hook = stack.enter_context(webhook())
        ports = {"prometheus": free_port(), "alertmanager": free_port()}
        watching, routing = configured(folder, serving.metrics_port, ports["alertmanager"], hook.port)
        address = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        command = ["prometheus-alertmanager", f"--config.file={routing}", f"--storage.path={folder / 'am'}"]
        command += [f"--web.listen-address={address['alertmanager']}", "--cluster.listen-address="]
        ready = f"http://{address['alertmanager']}/-/ready"
        stack.enter_context(running(command, folder / "alertmanager.log", ready))
        command = ["prometheus", f"--config.file={watching}", f"--storage.tsdb.path={folder / 'tsdb'}"]
        command += [f"--web.listen-address={address['prometheus']}"]
        stack.enter_context(running(command, folder / "prometheus.log", f"http://{address['prometheus']}/-/ready"))
        prometheus = Prometheus(f"http://{address['prometheus']}")
        start = time.time()
        say(f"clean traffic for {clean:.0f} s")
        ordinary = in_background(lambda: send(serving.target, images, CLEAN_RATE, clean + attack + AFTER))
        time.sleep(clean)
        say(f"an attack for {attack:.0f} s")
        began = time.time()
        bad = send(serving.target, attacked, ATTACK_RATE, attack)
        over = time.time()
        say("clean traffic again")
        ordinary.join()
        end = time.time()
        firing = prometheus.firing(start, end)
        curves = {
            title: prometheus.over(query, start, end) for title, query in (("flagged", SHARE), ("tol", TOLERATED))
        }
    _draw(curves["flagged"], curves["tol"], start, (began, over), firing.get("AskanceAttackSuspected"))
    record = _record(start, (began, over), end, bad, firing, hook.received)
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{record}\n{END}{rest.split(END)[1]}")


def _draw(
    flagged: list[tuple[float, float]],
    tolerated: list[tuple[float, float]],
    start: float,
    attack: tuple[float, float],
    fired: float | None,
) -> None:
    figure, axes = plt.subplots(figsize=(10, 4), layout="constrained")
    axes.axvspan(
        *((when - start) / 60 for when in attack), color="#b22222", alpha=0.1, label="PGD images in the traffic"
    )
    for curve, colour, label in (
        (flagged, "#1f4e79", "share of images judged ADVERSARIAL, over 30 s"),
        (tolerated, "#888888", "share that the rule tolerates"),
    ):
        axes.plot([(when - start) / 60 for when, _ in curve], [100 * value for _, value in curve], colour, label=label)
    axes.axhline(1, color="#2a7f3f", linestyle=":", label="calibrated false-positive rate, 1%")
    if fired is not None:
        axes.axvline((fired - start) / 60, color="#b22222", label="AskanceAttackSuspected fires")
    axes.set(
        xlabel="minutes", ylabel="%", ylim=(0, None), title="Flag rate, as Prometheus scraped it from a live server"
    )
    axes.legend(loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, dpi=110)


def _record(
    start: float,
    attack: tuple[float, float],
    end: float,
    sent: int,
    firing: dict[str, float],
    received: list[Notification],
) -> str:
    began, over = attack
    early = [f"{name} after {when - start:.0f} s" for name, when in firing.items() if when < began]
    lines = [
        "| | |",
        "|---|---|",
        f"| clean traffic | {CLEAN_RATE:g} images a second for {began - start:.0f} s |",
        f"| alerts in that time | {', '.join(early) or 'none'} |",
        f"| notifications in that time | {sum(one.when < began for one in received)} |",
        f"| attack | {sent} PGD images in {over - began:.0f} s beside the clean ones |",
    ]
    for name, when in sorted(firing.items(), key=lambda item: item[1]):
        if when >= began:
            lines.append(f"| `{name}` fires | {when - began:.0f} s after the attack began |")
    for one in received:
        if one.when >= began:
            what = f"`{one.receiver}`: {', '.join(sorted(set(one.alerts)))} {one.status}"
            lines.append(f"| webhook {what} | {one.when - began:.0f} s after the attack began |")
    lines.append(f"| end of the record | {end - over:.0f} s after the attack |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
