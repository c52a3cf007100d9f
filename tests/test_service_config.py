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
    assert set(tomllib.loads(SHIPPED.read_text())) == set(ServerConfig.model_fields) - {"clients", "tls", "candidate"}
    assert all(f"# {name}" in SHIPPED.read_text() for name in ("[[clients]]", "[tls]", "candidate ="))


def test_files_are_looked_for_beside_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text("candidate = 'next'\n[tls]\ncertificate = 'a.pem'\nkey = '/b.key'\n")
    config = ServerConfig.load(path)
    assert config.candidate == tmp_path / "next"
    tls = config.tls
    assert tls is not None
    assert (tls.certificate, tls.key, tls.client_ca) == (tmp_path / "a.pem", Path("/b.key"), None)


def test_overrides_win_and_none_is_no_override(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text("port = 1\nmax_batch = 8\n")
    config = ServerConfig.load(path, port=2, metrics_port=None)
    assert (config.port, config.max_batch, config.metrics_port) == (2, 8, 9500)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("max_bacth = 3", r"server.toml: unknown setting 'max_bacth': did you mean 'max_batch'\? known: host, port, "),
        ("port = 70000", r"server.toml: port: input should be less than or equal to 65535, got 70000"),
        ("max_batch = 'x'", r"server.toml: max_batch: input should be a valid integer.*, got 'x'"),
        (
            "[tls]\ncertificate = 'a'\nkey = 'b'\nclient_ac = 'c'",
            r"server.toml: unknown setting 'tls.client_ac': did you mean 'client_ca'",
        ),
        (
            "[[clients]]\nname = 'a'\ntoken = 'b'",
            r"server.toml: unknown setting 'clients.0.token': known: name, token_sha256, certificate, roles",
        ),
        ("[[clients]]\nname = 'a'", r"server.toml: clients.0: value error, a client is known by token_sha256 or by"),
        ("anonymous = ['root']", r"server.toml: anonymous.0: input should be 'predict', 'scores', 'explanations' or"),
        ("port = ", r"server.toml is not TOML: Invalid value \(at"),
    ],
)
def test_a_mistake_gets_one_line(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "server.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=text) as caught:
        ServerConfig.load(path)
    assert "\n" not in str(caught.value)


def test_a_token_that_stands_where_its_hash_should_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text('[[clients]]\nname = "gateway"\ntoken_sha256 = "the-token-itself"\n')
    with pytest.raises(ConfigError, match="token_sha256") as caught:
        ServerConfig.load(path)
    assert "the-token-itself" not in str(caught.value)


def test_a_missing_file_and_a_bad_override_get_one_line(tmp_path: Path) -> None:
    with pytest.raises(AskanceError, match=re.escape(f"{tmp_path / 'x.toml'} cannot be read: No such file")):
        ServerConfig.load(tmp_path / "x.toml")
    with pytest.raises(ConfigError, match=r"^port: input should be greater than or equal to 0, got -1$"):
        ServerConfig.load(SHIPPED, port=-1)
