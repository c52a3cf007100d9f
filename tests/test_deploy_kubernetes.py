"""deploy/kubernetes: valid manifests that agree with each other, with the image, and with the server they run."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import grpc
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from service_support import Running, Valve, config, noise, running, tiny_served, until

from askance.service.client_messages import request_of
from askance.service.config import ServerConfig
from askance.service.observability.metrics import Metrics
from askance.service.pb.askance.v1 import screening_pb2_grpc
from askance.service.protocols import SERVICES
from askance.service.server import HEALTH_NAMES
from askance.service.watchdog import HUNG_STALLS

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "kubernetes"
LABELS = {"app.kubernetes.io/name": "askance"}
OLDEST, NEWEST = "1.30", "1.37"  # of Kubernetes
MEBIBYTE = 1024 * 1024

Manifest = dict[str, Any]


def load(name: str) -> Manifest:
    content: Manifest = yaml.safe_load((FOLDER / name).read_text())
    return content


KUSTOMIZATION = load("kustomization.yaml")
MANIFESTS = {manifest["kind"]: manifest for manifest in map(load, KUSTOMIZATION["resources"])}
DEPLOYMENT = MANIFESTS["Deployment"]["spec"]
POD = DEPLOYMENT["template"]["spec"]
(CONTAINER,) = POD["containers"]
PORTS = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
SETTINGS = ServerConfig.load(FOLDER / "server.toml")


def test_every_manifest_is_applied() -> None:
    others = {"kustomization.yaml", "prometheus-adapter.yaml"}
    assert {path.name for path in FOLDER.glob("*.yaml")} - others == set(KUSTOMIZATION["resources"])
    assert len(MANIFESTS) == len(KUSTOMIZATION["resources"])


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("kind", sorted(set(MANIFESTS) - {"ServiceMonitor"}))
def test_kubernetes_knows_every_field(kind: str, version: str) -> None:
    kubernetes_validate.validate(MANIFESTS[kind], version, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_renders_them() -> None:
    done = subprocess.run(["kubectl", "kustomize", FOLDER], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    rendered = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(done.stdout)}
    assert set(rendered) == set(MANIFESTS) | {"ConfigMap"}
    assert rendered["ConfigMap"]["data"] == {"server.toml": (FOLDER / "server.toml").read_text()}
    pod = rendered["Deployment"]["spec"]["template"]["spec"]
    (settings,) = (volume["configMap"] for volume in pod["volumes"] if "configMap" in volume)
    assert settings["name"] == rendered["ConfigMap"]["metadata"]["name"] != "askance"


def test_the_settings_fit_the_pod() -> None:
    assert (SETTINGS.host, SETTINGS.metrics_host) == ("0.0.0.0", "0.0.0.0")  # probes come from the node
    assert {"grpc": SETTINGS.port, "metrics": SETTINGS.metrics_port} == PORTS
    assert (
        SETTINGS.shutdown.lame_duck_seconds + SETTINGS.shutdown.drain_seconds + 10
        <= POD["terminationGracePeriodSeconds"]
    )
    assert SETTINGS.connections.max_age_seconds > 0
    limits = CONTAINER["resources"]["limits"]
    assert SETTINGS.inference.threads == int(limits["cpu"]) - 1
    (gibibytes,) = re.findall(r"^(\d+)Gi$", limits["memory"])
    assert 2 * SETTINGS.limits.max_in_flight_bytes < int(gibibytes) * 1024 * MEBIBYTE


def test_every_selector_finds_what_it_should() -> None:
    selecting = [
        DEPLOYMENT["selector"]["matchLabels"],
        MANIFESTS["Service"]["spec"]["selector"],
        MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        *(spread["labelSelector"]["matchLabels"] for spread in POD["topologySpreadConstraints"]),
    ]
    assert DEPLOYMENT["template"]["metadata"]["labels"] == LABELS
    assert selecting == [LABELS] * 6
    assert MANIFESTS["ServiceMonitor"]["spec"]["selector"]["matchLabels"] == LABELS
    assert MANIFESTS["Service"]["metadata"]["labels"] == LABELS
    target = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    deployment = MANIFESTS["Deployment"]
    assert (target["kind"], target["name"]) == (deployment["kind"], deployment["metadata"]["name"])


def test_every_port_named_exists() -> None:
    services = {port["name"]: port["targetPort"] for port in MANIFESTS["Service"]["spec"]["ports"]}
    assert services == {name: name for name in PORTS}
    (endpoint,) = MANIFESTS["ServiceMonitor"]["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("metrics", "/metrics")


def test_only_clients_reach_grpc_and_only_monitoring_the_metrics() -> None:
    policy = MANIFESTS["NetworkPolicy"]["spec"]
    clients, monitoring = policy["ingress"]
    assert [port["port"] for port in clients["ports"]] == ["grpc"]
    assert clients["from"][0]["podSelector"]["matchLabels"] == {"askance-client": "true"}
    assert [port["port"] for port in monitoring["ports"]] == ["metrics"]
    assert monitoring["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []


def test_every_volume_mounted_exists_and_is_read_only() -> None:
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    mounts = {mount["name"]: mount for mount in CONTAINER["volumeMounts"]}
    assert set(volumes) == set(mounts) == {"bundles", "settings"}
    assert all(mount["readOnly"] for mount in mounts.values())
    claim = MANIFESTS["PersistentVolumeClaim"]["metadata"]["name"]
    assert volumes["bundles"]["persistentVolumeClaim"] == {"claimName": claim, "readOnly": True}
    (generated,) = KUSTOMIZATION["configMapGenerator"]
    assert volumes["settings"]["configMap"]["name"] == generated["name"]
    command, bundle, option, config = CONTAINER["args"]
    assert (command, option) == ("serve", "--config")
    assert Path(bundle).parent == Path(mounts["bundles"]["mountPath"])
    assert Path(config) == Path(mounts["settings"]["mountPath"]) / generated["files"][0]


def test_the_pod_complies_with_the_restricted_standard() -> None:
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["automountServiceAccountToken"] is False
    assert MANIFESTS["Namespace"]["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}


def test_the_manifests_are_the_images() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    (user,) = re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)
    context = POD["securityContext"]
    assert tuple(map(int, user)) == (context["runAsUser"], context["runAsGroup"])
    (exposed,) = re.findall(r"^EXPOSE (.+)$", dockerfile, re.MULTILINE)
    assert [int(port) for port in exposed.split()] == list(PORTS.values())
    (image,) = KUSTOMIZATION["images"]
    assert image["name"] == CONTAINER["image"]
    assert image["newTag"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_autoscalers_metric_is_the_servers() -> None:
    scaler = MANIFESTS["HorizontalPodAutoscaler"]["spec"]
    (metric,) = scaler["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name in {family.name for family in Metrics(1).registry.collect()}
    (rule,) = load("prometheus-adapter.yaml")["rules"]["custom"]
    assert rule["seriesQuery"].startswith(f"{name}{{")
    assert re.fullmatch(rule["name"]["matches"], name)
    assert rule["name"]["as"] == name
    assert 0 < int(metric["pods"]["target"]["averageValue"]) < SETTINGS.inference.max_batch
    assert scaler["minReplicas"] >= 2
    assert "replicas" not in DEPLOYMENT  # each apply would undo what the autoscaler did


def test_the_rules_know_the_job() -> None:
    rules = (ROOT / "deploy" / "prometheus" / "rules.yml").read_text()
    assert set(re.findall(r'job="(\w+)"', rules)) == {MANIFESTS["Service"]["metadata"]["name"]}


async def probe(kind: str, service: Running) -> bool:
    """Ask a server as the kubelet would."""
    how = CONTAINER[f"{kind}Probe"]
    if "grpc" in how:
        assert how["grpc"]["port"] == SETTINGS.port
        stub = health_pb2_grpc.HealthStub(service.channel)  # type: ignore[no-untyped-call]
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=how["grpc"]["service"]))
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
    assert how["httpGet"]["port"] == "metrics"
    return (await service.get(how["httpGet"]["path"]))[0] == 200


@pytest.mark.parametrize("kind", ["startup", "readiness", "liveness"])
def test_probes_follow_the_server(kind: str) -> None:
    async def main() -> None:
        valve = Valve()
        async with running(tiny_served(valve), config(stall_seconds=0.1)) as service:
            assert await probe(kind, service)
            valve.shut()
            held = asyncio.ensure_future(service.stub.Screen(request_of(noise(1))))
            while await probe(kind, service):
                await asyncio.sleep(0.01)
            valve.opened.set()
            await held
            while not await probe(kind, service):
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_a_stalled_server_is_restarted_and_a_loading_one_is_not() -> None:
    assert CONTAINER["readinessProbe"]["grpc"]["service"] in HEALTH_NAMES
    patience = {kind: CONTAINER[f"{kind}Probe"] for kind in ("startup", "liveness")}
    seconds = {kind: one["periodSeconds"] * one["failureThreshold"] for kind, one in patience.items()}
    assert seconds["startup"] >= 120  # nothing else is asked until the server has loaded
    assert CONTAINER["livenessProbe"]["httpGet"]["path"] == "/livez"  # which is 200 while loading
    assert HUNG_STALLS * SETTINGS.inference.stall_seconds + seconds["liveness"] < 300


def both_answer(services: tuple[Running, Running]) -> bool:
    return all(answered(service) > 20 for service in services)


def answered(service: Running) -> float:
    return service.value("askance_requests_total", method="Screen", code="OK") or 0.0


def test_clients_with_the_service_config_lose_no_call_when_a_replica_goes() -> None:
    text = (FOLDER / "service-config.json").read_text()
    assert {one["service"] for one in json.loads(text)["methodConfig"][0]["name"]} == set(SERVICES)

    async def main() -> None:
        async with asyncio.timeout(60), running() as first, running() as second:
            target = f"ipv4:{first.target},{second.target}"
            async with grpc.aio.insecure_channel(target, options=[("grpc.service_config", text)]) as channel:
                stub: Any = screening_pb2_grpc.ScreeningStub(channel)  # type: ignore[no-untyped-call]
                stop = asyncio.Event()

                async def client(seed: int) -> int:
                    count = 0
                    while not stop.is_set():
                        await stub.Screen(request_of(noise(seed)), timeout=30)
                        count += 1
                    return count

                clients = [asyncio.create_task(client(seed)) for seed in range(8)]
                await until(lambda: both_answer((first, second)))
                await first.server.stop()
                left = answered(second)
                await until(lambda: answered(second) > left + 20)
                stop.set()
                counts = await asyncio.gather(*clients)
            assert sum(counts) == answered(first) + answered(second)

    asyncio.run(main())
