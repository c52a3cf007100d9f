"""Who may read the metrics port: this machine unless told otherwise, by token, over TLS; and nobody can block it."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trustme
import yaml
from prometheus_client import CollectorRegistry
from service_support import config as settings
from service_support import free_port, http_get, process_serving, publish_tiny, running, until
from tls_support import Pems

from askance.errors import ConfigError
from askance.service.config import ServerConfig
from askance.service.guard.access import new_token, token_check
from askance.service.guard.tls import Certificates, TlsConfig
from askance.service.observability import http
from askance.service.observability.http import MetricsServer

DEPLOY = Path(__file__).parents[1] / "deploy" / "prometheus"
TOKEN, DIGEST = new_token()


@pytest.fixture
def pems(tmp_path: Path) -> Pems:
    return Pems(tmp_path, trustme.CA())


@contextmanager
def serving(token: str | None = None, tls: ssl.SSLContext | None = None) -> Iterator[MetricsServer]:
    check = None if token is None else token_check(token)
    server = MetricsServer("127.0.0.1", 0, CollectorRegistry(), lambda: "serving", lambda: True, check, tls)
    try:
        yield server
    finally:
        server.close()


def get(url: str, authorization: str | None = None, ca: Path | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, headers={} if authorization is None else {"authorization": authorization})
    context = None if ca is None else ssl.create_default_context(cafile=str(ca))
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_by_default_this_machine_alone_reads_the_metrics() -> None:
    """However widely clients are served."""
    config = ServerConfig.load(None, {"host": "0.0.0.0"})
    assert (config.host, config.metrics_host) == ("0.0.0.0", "127.0.0.1")

    async def main() -> None:
        async with running(settings=settings(host="0.0.0.0")) as service:
            assert service.server._metrics_server is not None
            assert service.server._metrics_server._server.server_address[0] == "127.0.0.1"

    asyncio.run(main())


def test_the_two_ports_have_hosts_of_their_own(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "bundle", "service_support:TinyClassifier")
    ports = ("--port", "0", "--metrics-port", "0")
    with process_serving(tmp_path / "bundle", "--metrics-host", "::1", *ports) as (_, said):
        assert (said.host, said.metrics_host, said.metrics_scheme) == ("127.0.0.1", "::1", "http")
        assert http_get(f"http://[::1]:{said.metrics_port}/healthz") == (200, "serving\n")
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", said.metrics_port), timeout=10):
            raise AssertionError("it listens there, too")


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {DIGEST}"],
    ids=["none", "empty", "wrong", "basic", "bare", "the hash"],
)
def test_the_metrics_take_the_token(authorization: str | None) -> None:
    with serving(DIGEST) as server:
        url = f"http://127.0.0.1:{server.port}"
        assert get(f"{url}/metrics", authorization) == (401, "expected the metrics' bearer token\n")
        assert get(f"{url}/metrics", f"Bearer {TOKEN}")[0] == 200
        assert get(f"{url}/healthz", authorization) == (200, "serving\n")  # probes carry none


def test_a_server_takes_the_token_of_its_settings() -> None:
    async def main() -> None:
        async with running(settings=settings(metrics={"token_sha256": DIGEST})) as service:
            assert (await service.get("/metrics"))[0] == 401
            assert await service.get("/healthz") == (200, "serving\n")

    asyncio.run(main())


def test_the_metrics_over_tls_and_a_renewed_certificate(pems: Pems) -> None:
    tls = TlsConfig(**dict(zip(("certificate", "key"), pems.issue("server", "127.0.0.1"), strict=True)))
    with serving(DIGEST, Certificates(tls, "metrics.tls").context()) as server:
        url, ca = f"https://127.0.0.1:{server.port}", pems.ca
        assert get(f"{url}/metrics", f"Bearer {TOKEN}", ca)[0] == 200
        assert get(f"{url}/metrics", None, ca)[0] == 401
        assert get(f"{url}/healthz", None, ca) == (200, "serving\n")
        with pytest.raises(OSError):
            get(f"http://127.0.0.1:{server.port}/healthz")
        pems.authority = trustme.CA()
        pems.issue("server", "127.0.0.1")
        assert get(f"{url}/healthz", None, pems.ca) == (200, "serving\n")


def test_certificates_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('[metrics.tls]\ncertificate = "none.pem"\nkey = "none.key"\n')
    config = ServerConfig.load(file, {"port": 0, "metrics_port": 0})

    async def main() -> None:
        with pytest.raises(ConfigError, match=r"^metrics\.tls: .*none\.pem cannot be read: No such file"):
            async with running(settings=config):
                raise AssertionError("it served")

    asyncio.run(main())


def test_a_token_in_place_of_its_hash_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('[metrics]\ntoken_sha256 = "the-token-itself"\n')
    with pytest.raises(ConfigError, match=r"metrics\.token_sha256") as caught:
        ServerConfig.load(file)
    assert "the-token-itself" not in str(caught.value)


@pytest.mark.parametrize("secure", [False, True], ids=["in the clear", "over TLS"])
def test_connections_that_say_nothing_do_not_keep_others_out(pems: Pems, secure: bool) -> None:
    tls = TlsConfig(**dict(zip(("certificate", "key"), pems.issue("server", "127.0.0.1"), strict=True)))
    with serving(tls=Certificates(tls).context() if secure else None) as server, ExitStack() as stack:
        idle = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
            for _ in range(3 * http.CONNECTIONS)
        ]
        url = f"{'https' if secure else 'http'}://127.0.0.1:{server.port}/healthz"
        assert get(url, None, pems.ca if secure else None) == (200, "serving\n")
        assert idle[0].recv(1) == b""  # the oldest gave way


def test_a_client_that_dribbles_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECTION_SECONDS", 0.3)

    def is_cut(client: socket.socket) -> bool:
        try:
            client.sendall(b"G")
            client.settimeout(0.01)
            return client.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    async def main() -> None:
        with serving() as server, socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
            await until(lambda: is_cut(client))
            assert get(f"http://127.0.0.1:{server.port}/healthz")[0] == 200

    asyncio.run(main())


# Prometheus itself


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """The shipped configuration with another target, a scrape each second and no Alertmanager; its API's address."""
    shipped = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    shipped["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    shipped["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    shipped["alerting"]["alertmanagers"] = []
    (folder / "prometheus.yml").write_text(yaml.safe_dump(shipped))
    (folder / "rules.yml").write_text((DEPLOY / "rules.yml").read_text())
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log) as process,
    ):
        try:
            yield f"http://{address}"
        finally:
            process.terminate()
            process.wait(60)


def up(api: str) -> tuple[str, str]:
    """The health of the only target, and its last error."""
    try:
        with urllib.request.urlopen(f"{api}/api/v1/targets", timeout=10) as answer:
            targets = json.load(answer)["data"]["activeTargets"]
    except OSError:
        return "unknown", ""  # it starts
    return (targets[0]["health"], targets[0]["lastError"]) if targets else ("unknown", "")


@pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed: apt-get install prometheus"
)
def test_prometheus_scrapes_over_tls_with_a_token(pems: Pems) -> None:
    """By deploy/prometheus/prometheus.yml; and with a wrong token it does not."""
    certificate, key = pems.issue("server", "127.0.0.1")
    folder = pems.folder
    (folder / "askance-ca.pem").write_bytes(pems.ca.read_bytes())
    (folder / "askance-token").write_text(f"{TOKEN}\n")
    metrics = {"token_sha256": DIGEST, "tls": {"certificate": certificate, "key": key}}

    async def main() -> None:
        async with running(settings=settings(metrics=metrics)) as service:
            with prometheus(folder, f"127.0.0.1:{service.server.ports.metrics_port}") as api:

                async def health(wanted: str) -> str:
                    while (found := await asyncio.to_thread(up, api))[0] != wanted:
                        await asyncio.sleep(0.1)
                    return found[1]

                assert await health("up") == ""
                query = f"{api}/api/v1/query?{urllib.parse.urlencode({'query': 'askance_queue_depth'})}"
                answer = json.loads((await asyncio.to_thread(get, query))[1])
                assert [one["metric"]["job"] for one in answer["data"]["result"]] == ["askance"]
                (folder / "askance-token").write_text("another\n")
                assert "401" in await health("down")

    asyncio.run(main())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus")
def test_promtool_accepts_the_shipped_configuration(pems: Pems) -> None:
    for name in ("prometheus.yml", "rules.yml"):
        (pems.folder / name).write_text((DEPLOY / name).read_text())
    (pems.folder / "askance-ca.pem").write_bytes(pems.ca.read_bytes())
    (pems.folder / "askance-token").write_text(TOKEN)
    command = ["promtool", "check", "config", str(pems.folder / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
