"""The server's settings: defaults, overrides, and the line that each mistake gets."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from askance.errors import AskanceError, ConfigError
from askance.service.config import ServerConfig

SHIPPED = Path(__file__).parents[1] / "configs" / "server.toml"


def test_the_shipped_file_holds_every_default() -> None:
    assert ServerConfig.load(SHIPPED) == ServerConfig()
    # those that have none by default stand there as comments
    text = SHIPPED.read_text()
    content = tomllib.loads(text)
    assert set(content) == set(ServerConfig.model_fields) - {"tls", "rest_port"}
    optional = (
        "[[access.clients]]",
        "[tls]",
        "candidate =",
        "rest_port =",
        "require_signature =",
        "folder =",
        "store =",
        "password_file =",
        "ca =",
        "token_sha256 =",
        "[metrics.tls]",
    )
    assert all(f"# {name}" in text for name in optional)
    without_default = {
        "access": {"clients"},
        "rollout": {"candidate"},
        "bundles": {"require_signature"},
        "review": {"folder"},
        "replicas": {"store", "password_file", "ca"},
        "metrics": {"token_sha256", "tls"},
    }
    for name, field in ServerConfig.model_fields.items():
        settings = getattr(field.annotation, "model_fields", None)
        if settings is not None:
            assert set(content[name]) == set(settings) - without_default.get(name, set()), name


def test_files_are_looked_for_beside_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    pair = "certificate = 'a.pem'\nkey = '/b.key'\n"
    path.write_text(f"[rollout]\ncandidate = 'next'\n[tls]\n{pair}[metrics.tls]\n{pair}")
    config = ServerConfig.load(path)
    assert config.rollout.candidate == tmp_path / "next"
    tls = config.tls
    assert tls is not None
    assert (tls.certificate, tls.key, tls.client_ca) == (tmp_path / "a.pem", Path("/b.key"), None)
    assert config.metrics.tls == tls


def test_overrides_win_and_none_is_no_override(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text("port = 1\n[inference]\nmax_batch = 8\n")
    config = ServerConfig.load(path, {"port": 2, "metrics_port": None, "inference.single_pass": True})
    assert (config.port, config.inference.max_batch, config.metrics_port) == (2, 8, 9500)
    assert config.inference.single_pass


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            "[inference]\nmax_bacth = 3",
            r"server.toml: unknown setting 'inference.max_bacth': did you mean 'max_batch'\? known: engine, max_batch",
        ),
        ("prot = 3", r"server.toml: unknown setting 'prot': did you mean 'port'\? known: host, port, "),
        (
            "queue_size = 3",
            r"server.toml: unknown setting 'queue_size': did you mean 'limits.queue_size'\? known here: host",
        ),
        (
            "qeue_size = 3",
            r"server.toml: unknown setting 'qeue_size': did you mean 'limits.queue_size'\? known here: host",
        ),
        ("inference_threads = 3", r"unknown setting 'inference_threads': did you mean 'inference.threads'\?"),
        ("[tls]\ncertifcate = 'x'", r"unknown setting 'tls.certifcate': did you mean 'certificate'\?"),
        ("[tls]\ncertificate = 'x'", r"server.toml: the setting 'tls.key' is missing"),
        ("[limits]\nmax_batch = 3", r"unknown setting 'limits.max_batch': did you mean 'inference.max_batch'\?"),
        (
            "[limits]\nmax_in_flight_bytes = 20_000_000",
            r"limits: max_in_flight_bytes must hold one request of max_message_bytes twice, 33554432 "
            r"bytes or more, got 20000000",
        ),
        ("port = 70000", r"server.toml: port: input should be less than or equal to 65535, got 70000"),
        (
            "[inference]\nmax_batch = 'x'",
            r"inference.max_batch: input should be a valid integer.*, got 'x'",
        ),
        (
            "[tls]\ncertificate = 'a'\nkey = 'b'\nclient_ac = 'c'",
            r"server.toml: unknown setting 'tls.client_ac': did you mean 'client_ca'",
        ),
        (
            "[[access.clients]]\nname = 'a'\ntoken = 'b'",
            r"server.toml: unknown setting 'access.clients.0.token': known: name, token_sha256, certificate, roles",
        ),
        (
            "[[access.clients]]\nname = 'a'",
            r"access.clients.0: a client is known by token_sha256",
        ),
        (
            "[access]\nanonymous = ['scors']",
            r"access.anonymous.0: unknown 'scors': did you mean 'scores'\? known: predict, logits, scores, explan",
        ),
        ("[verdicts]\npolicy = 'blok'", r"verdicts.policy: unknown 'blok': did you mean 'block'\?"),
        ("[inference]\nstall_seconds = inf", "stall_seconds: input should be less than or equal to 1000000, got inf"),
        ("[shutdown]\ndrain_seconds = 1e308", "drain_seconds: input should be less than or equal to 1000000, got 1e"),
        ("[limits]\nclient_rate = inf", "client_rate: input should be a finite number, got inf"),
        ('host = "a\\u0000b"', "host: string should match pattern"),
        ('metrics_host = " "', "metrics_host: string should match pattern"),
        ("port = " + "9" * 5000, r"server.toml is not TOML: Exceeds the limit"),
        ("port = " + "[" * 9999 + "]" * 9999, r"server.toml is not TOML: maximum recursion depth exceeded"),
        ("port = ", r"server.toml is not TOML: Invalid value \(at"),
    ],
)
def test_a_mistake_gets_one_line(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "server.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=text) as caught:
        ServerConfig.load(path)
    assert "\n" not in str(caught.value)


def test_a_mark_of_byte_order_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text("port = 8501\n", encoding="utf-8-sig")  # as editors of Windows write it
    assert ServerConfig.load(path).port == 8501


def test_no_time_is_too_long_for_the_clocks(tmp_path: Path) -> None:
    """A watchdog that waited for infinity died in its first moment, and nothing said so."""
    path = tmp_path / "server.toml"
    lines = [
        f"[{table}]\n{name} = 1e7\n"
        for table, field in ServerConfig.model_fields.items()
        for name in getattr(field.annotation, "model_fields", {})
        if name.endswith("_seconds")
    ]
    assert len(lines) >= 8
    for line in lines:
        path.write_text(line)
        with pytest.raises(ConfigError, match="input should be less than or equal to 1000000, got 10000000"):
            ServerConfig.load(path)


def test_a_token_that_stands_where_its_hash_should_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text('[[access.clients]]\nname = "gateway"\ntoken_sha256 = "the-token-itself"\n')
    with pytest.raises(ConfigError, match="token_sha256") as caught:
        ServerConfig.load(path)
    assert "the-token-itself" not in str(caught.value)


def test_a_missing_file_and_a_bad_override_get_one_line(tmp_path: Path) -> None:
    with pytest.raises(AskanceError, match=re.escape(f"{tmp_path / 'x.toml'} cannot be read: No such file")):
        ServerConfig.load(tmp_path / "x.toml")
    with pytest.raises(ConfigError, match=r"^port: input should be greater than or equal to 0, got -1$"):
        ServerConfig.load(SHIPPED, {"port": -1})
