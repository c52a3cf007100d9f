"""What deploy/ ships: alerts on metrics that exist, each with its page of the runbook, and their own unit tests."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from askance.service.errors import REASONS
from askance.service.guard.admission import Kind
from askance.service.observability.metrics import RELOADS, SUSPICIONS, Metrics
from askance.service.observability.shared import WorkerMetrics
from askance.service.probing.patrol import Patrol
from askance.service.protocols import METHODS
from askance.service.settings import ProbingConfig, Response
from askance.service.store import Store

ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
ALERTS = re.findall(r"- alert: (\w+)", RULES.read_text())


def test_every_metric_of_the_rules_is_the_servers() -> None:
    of_workers = CollectorRegistry()
    WorkerMetrics(of_workers, lambda: 0)
    nowhere = Store("redis://127.0.0.1:1", None, None, "askance")
    Patrol(ProbingConfig(response=Response.LOG), (), of_patrols := CollectorRegistry(), store=nowhere).stop()
    families = [*Metrics(1).registry.collect(), *of_workers.collect(), *of_patrols.collect()]
    known = {family.name for family in families}
    known |= {f"{name}{suffix}" for name in known for suffix in ("_total", "_bucket", "_count", "_sum")}
    text = re.sub(r"#.*|\$externalLabels\.\w+", "", RULES.read_text())
    used = set(re.findall(r"\baskance_\w+", text))
    assert len(used) > 8
    assert used <= known


def test_every_label_value_of_the_rules_is_one_that_is_counted() -> None:
    text = RULES.read_text()
    named = {reason for found in re.findall(r'rejected_total\{reason=~?"([^"]+)"', text) for reason in found.split("|")}
    assert named == {"queue_full", "in_flight_bytes", "stalled"} <= set(REASONS)
    assert tuple(re.findall(r'reason_flags_total\{reason="(\w+)"', text)) == SUSPICIONS
    assert set(re.findall(r'result="(\w+)"', text)) <= set(RELOADS)


def test_times_are_taken_of_every_method_that_screens() -> None:
    """By the rules and the dashboard: no protocol is slow unseen."""
    screening = [name for name, kind in METHODS.items() if kind is Kind.SCREENS]
    board = RULES.parents[1] / "grafana" / "dashboards" / "askance.json"
    for path, count in ((RULES, 1), (board, 2)):
        named = re.findall(r'request_seconds_bucket\{method=~\\?"([\w|]+)', path.read_text())
        assert [one.split("|") for one in named] == [screening] * count


def test_every_alert_has_its_page() -> None:
    pages = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert pages == ALERTS
    links = re.findall(r"runbook_url: '(.*)#(\w+)'", RULES.read_text())
    assert [anchor for _, anchor in links] == [alert.lower() for alert in ALERTS]
    assert {base for base, _ in links} == {'{{ or $externalLabels.askance_runbook "docs/runbook.md" }}'}


def test_every_alert_that_an_attacker_may_cause_names_the_technique() -> None:
    """And every id is one that docs/security.md explains, as it is spelt there."""
    security = (ROOT / "docs" / "security.md").read_text()
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    named = {
        rule["alert"]: [
            one for key in ("atlas", "aisvs") for one in rule["annotations"].get(key, "").split(", ") if one
        ]
        for rule in rules
        if "alert" in rule
    }
    assert all(
        re.fullmatch(r"AML\.T\d{4}|v1\.0-C1[12]\.\d\.\d", one) and f"`{one}`" in security
        for ids in named.values()
        for one in ids
    )
    of_the_verdicts = next(g for g in yaml.safe_load(RULES.read_text())["groups"] if g["name"] == "askance-verdicts")
    assert all(named[rule["alert"]] for rule in of_the_verdicts["rules"] if "alert" in rule)


def test_every_alert_is_tested_firing() -> None:
    text = RULES.with_name("rules_test.yml").read_text()
    firing = set(re.findall(r"alertname: (\w+)\n\s+exp_alerts:", text))
    assert firing == set(ALERTS)


def test_the_image_serves_clients_and_prometheus_from_outside() -> None:
    (command,) = re.findall(r"^CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert json.loads(command) == ["serve", "/bundle", "--host", "0.0.0.0", "--metrics-host", "0.0.0.0"]


def test_the_image_is_built_of_all_parts_of_the_package() -> None:
    """What .dockerignore leaves out is missing in the image alone; the links in askance/ say what there is."""
    taken = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    parts = {path.name for path in (ROOT / "askance").iterdir() if path.is_symlink()}
    assert parts - {"deploy", "proto"} <= taken  # which `askance files` copies, and no server reads


ROUTES = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"


def test_every_alert_named_by_a_route_exists() -> None:
    named = {name for found in re.findall(r'alertname=~?"([^"]+)"', ROUTES.read_text()) for name in found.split("|")}
    assert named <= set(ALERTS)


@pytest.mark.skipif(
    shutil.which("amtool") is None, reason="amtool is not installed: apt-get install prometheus-alertmanager"
)
@pytest.mark.parametrize(("alert", "receiver"), [("AskanceAttackSuspected", "security"), ("AskanceSlow", "operations")])
def test_alertmanager_takes_the_routes(alert: str, receiver: str) -> None:
    route = ["config", "routes", "test", f"--config.file={ROUTES}", f"alertname={alert}", "job=askance"]
    for arguments in (["check-config", str(ROUTES)], route):
        done = subprocess.run(["amtool", *arguments], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == receiver


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus")
def test_the_rules_pass_promtool() -> None:
    for arguments in (["check", "rules", RULES.name], ["test", "rules", "rules_test.yml"]):
        done = subprocess.run(
            ["promtool", *arguments], cwd=RULES.parent, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
