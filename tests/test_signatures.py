"""Signatures: who made a bundle, asked before anything of it is parsed, built or imported."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service_support import build_tiny, config, publish_tiny, running

import askance
from askance.calibration.live import evaluate
from askance.classifiers import trusting
from askance.detectors import Bundle
from askance.errors import BundleError, ConfigError
from askance.screening.signatures import SIGNATURES, sign
from askance.service.config import ServerConfig
from askance.service.runtime.model import LoadedBundle

FACTORY = "service_support:TinyClassifier"


def pem_of(key: Ed25519PrivateKey, encryption: KeySerializationEncryption | None = None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def public_of(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class Keys:
    """Two key pairs as files, and keyrings of either and of both."""

    def __init__(self, folder: Path) -> None:
        self.ours, self.theirs = (Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (1, 2))
        self.private, self.their_private = folder / "private.pem", folder / "theirs.pem"
        self.keyring, self.their_keyring, self.both = folder / "keyring.pem", folder / "other.pem", folder / "both.pem"
        self.private.write_bytes(pem_of(self.ours))
        self.their_private.write_bytes(pem_of(self.theirs))
        self.keyring.write_bytes(public_of(self.ours))
        self.their_keyring.write_bytes(public_of(self.theirs))
        self.both.write_bytes(
            b"# the build server\n" + public_of(self.ours) + b"# a colleague\n" + public_of(self.theirs)
        )


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def unsigned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "bundle"
    publish_tiny(path, FACTORY)
    return path


@pytest.fixture
def signed(unsigned: Path, keys: Keys, tmp_path: Path) -> Path:
    path = Path(shutil.copytree(unsigned, tmp_path / "bundle"))
    sign(path, Bundle.open(path).signed_content, keys.private)
    return path


def refused(path: Path, keyring: Path, match: str, error: type[askance.AskanceError] = BundleError) -> None:
    with pytest.raises(error, match=match) as caught:
        Bundle.open(path, require_signature=keyring)
    assert "\n" not in str(caught.value)


def test_a_signed_bundle_is_the_same_bundle(signed: Path, unsigned: Path, keys: Keys) -> None:
    for keyring in (keys.keyring, keys.both):
        assert Bundle.open(signed, require_signature=keyring).manifest == Bundle.open(unsigned).manifest
    assert (signed / SIGNATURES).read_text().count("\n") == 1
    assert [path.name for path in signed.iterdir() if path.name.startswith(".")] == []


def test_openssl_verifies_it_too(signed: Path, keys: Keys, tmp_path: Path) -> None:
    """The signature is over the manifest's bytes as they stand: nothing of ours is needed to check it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl on this machine")
    (tmp_path / "raw").write_bytes(bytes.fromhex((signed / SIGNATURES).read_text().split()[2]))
    command = [openssl, "pkeyutl", "-verify", "-pubin", "-inkey", str(keys.keyring), "-rawin"]
    command += ["-in", str(signed / "manifest.json"), "-sigfile", str(tmp_path / "raw")]
    assert "Verified Successfully" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_keys_as_the_docs_make_them(unsigned: Path, keys: Keys, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl on this machine")
    path = Path(shutil.copytree(unsigned, tmp_path / "bundle"))
    private, keyring = tmp_path / "private.pem", tmp_path / "keyring.pem"
    subprocess.run([openssl, "genpkey", "-algorithm", "ed25519", "-out", str(private)], check=True)
    with keyring.open("wb") as file:
        file.write(public_of(keys.theirs))
        file.flush()
        subprocess.run([openssl, "pkey", "-in", str(private), "-pubout"], stdout=file, check=True)
    sign(path, Bundle.open(path).signed_content, private)
    Bundle.open(path, require_signature=keyring)
    refused(path, keys.keyring, "none of the 1 keys of the keyring")


def test_who_has_not_signed_is_refused(unsigned: Path, signed: Path, keys: Keys) -> None:
    refused(unsigned, keys.keyring, "bundle is not signed, and only signed bundles are taken here: askance sign")
    ours = keys.ours.public_key().public_bytes_raw().hex()[:16]
    refused(signed, keys.their_keyring, f"is signed by {ours}, none of the 1 keys of the keyring")
    (signed / SIGNATURES).write_text("ed25519 garbage\n")
    refused(signed, keys.keyring, "holds no signatures that askance sign made: remove it and sign again")
    (signed / SIGNATURES).write_text("")
    refused(signed, keys.keyring, "holds no signatures that askance sign made")


def test_several_may_sign(signed: Path, keys: Keys) -> None:
    for _ in range(2):  # once more changes nothing
        sign(signed, Bundle.open(signed).signed_content, keys.their_private)
        assert (signed / SIGNATURES).read_text().count("\n") == 2
        for keyring in (keys.keyring, keys.their_keyring, keys.both):
            Bundle.open(signed, require_signature=keyring)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_byte_of_a_signed_manifest_can_change(signed: Path, keys: Keys, data: st.DataObject) -> None:
    """Not one that the id leaves out, nor one that JSON does not count, such as a blank."""
    whole = (signed / "manifest.json").read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    added = data.draw(st.binary(max_size=3))
    changed = whole[:place] + added + whole[place + data.draw(st.integers(0, 2)) :]
    if changed != whole:
        (signed / "manifest.json").write_bytes(changed)
        refused(signed, keys.keyring, "has been altered since it was signed: copy it again")
        (signed / "manifest.json").write_bytes(whole)


def test_nothing_is_parsed_before(signed: Path, keys: Keys) -> None:
    (signed / "manifest.json").write_bytes(b"[" * 100_000)
    refused(signed, keys.keyring, "has been altered since it was signed")
    (signed / "introspection.safetensors").symlink_to("/dev/zero")
    refused(signed, keys.keyring, "has been altered since it was signed")


def test_keyrings_that_are_none(unsigned: Path, keys: Keys, tmp_path: Path) -> None:
    rsa = generate_private_key(65537, 2048)
    contents = {
        "holds no public key, expected PEM": b"",
        "holds no public key": b"ssh-ed25519 AAAA someone",
        "holds a PRIVATE KEY, expected public keys alone": pem_of(keys.ours),
        "holds a key of the kind RSA, expected Ed25519": rsa.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        ),
        "holds a damaged public key": public_of(keys.ours).replace(b"MCow", b"AAAA"),
        "is larger than 65536 bytes": public_of(keys.ours) * 1000,
    }
    for match, content in contents.items():
        (tmp_path / "keyring.pem").write_bytes(content)
        refused(unsigned, tmp_path / "keyring.pem", match, ConfigError)
    refused(unsigned, tmp_path / "nowhere.pem", "nowhere.pem cannot be read: No such file or directory", ConfigError)
    refused(unsigned, tmp_path, "cannot be read: Is a directory", ConfigError)


def test_keys_that_cannot_sign(unsigned: Path, keys: Keys, tmp_path: Path) -> None:
    rsa = generate_private_key(65537, 2048)
    contents = {
        "is encrypted: decrypt it for the time of signing": pem_of(keys.ours, BestAvailableEncryption(b"secret")),
        "holds a key of the kind RSA, expected Ed25519: make one with openssl genpkey": rsa.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
        "is no private key in PEM: make one with openssl genpkey -algorithm ed25519": public_of(keys.ours),
        "is no private key in PEM": b"",
    }
    for match, content in contents.items():
        (tmp_path / "key.pem").write_bytes(content)
        with pytest.raises(ConfigError, match=match) as caught:
            sign(unsigned, b"", tmp_path / "key.pem")
        assert "\n" not in str(caught.value)
    assert not (unsigned / SIGNATURES).exists()


def test_everything_that_opens_bundles_asks(unsigned: Path, signed: Path, keys: Keys) -> None:
    def in_process(path: Path) -> None:
        askance.open(path, allowed_factories=[FACTORY], require_signature=keys.keyring).close()

    def served(path: Path) -> None:
        LoadedBundle.open(path, trusting([FACTORY]), require_signature=keys.keyring).screen.close()

    def evaluated(path: Path) -> None:
        evaluate(path, {}, attacks=[], require_signature=keys.keyring)

    for attempt in (in_process, served):
        attempt(signed)
    for attempt in (in_process, served, evaluated):
        with pytest.raises(BundleError, match="is not signed"):
            attempt(unsigned)


def test_the_commands(signed: Path, unsigned: Path, keys: Keys, tmp_path: Path) -> None:
    settings = tmp_path / "server.toml"
    shutil.copy(keys.keyring, tmp_path / "beside.pem")
    settings.write_text('port = 0\nmetrics_port = 0\n[bundles]\nrequire_signature = "beside.pem"\n')
    assert ServerConfig.load(settings).bundles.require_signature == tmp_path / "beside.pem"

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "askance", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    digits = Path(__file__).parents[1] / "configs" / "digits.toml"
    for command in (
        ("inspect", unsigned, "--require-signature", keys.keyring),
        ("serve", unsigned, "--require-signature", keys.keyring, "--port", "0", "--metrics-port", "0"),
        ("serve", unsigned, "--config", settings),
        ("evaluate", unsigned, digits, "--require-signature", keys.keyring),
    ):
        done = run(*command)
        assert done.returncode == 2
        assert f"askance: {unsigned} is not signed" in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    (signed / SIGNATURES).unlink()
    done = run("sign", signed, "--key", keys.private)
    assert done.returncode == 0, done.stderr
    assert f"is signed by {keys.ours.public_key().public_bytes_raw().hex()[:16]}" in done.stdout
    Bundle.open(signed, require_signature=keys.keyring)
    (signed / "calibration.safetensors").write_bytes(b"")
    done = run("sign", signed, "--key", keys.private)
    assert done.returncode == 2
    assert "calibration.safetensors has been altered" in done.stderr


def test_a_server_keeps_what_it_has(signed: Path, unsigned: Path, keys: Keys) -> None:
    """A reload, a candidate's as well, asks for the signature of what is there then."""

    def opener(path: Path) -> LoadedBundle:
        return LoadedBundle.open(path, lambda *given: build_tiny("tiny", *given[1:]), require_signature=keys.keyring)

    async def main() -> None:
        async with running(opener(signed), config()) as service:
            server = service.server
            before = server.repository.default.version
            server._load = server._load_candidate = lambda: opener(unsigned)
            with pytest.raises(BundleError, match="is not signed"):
                await server.reload()
            assert server.repository.default.version == before
            assert service.value("askance_bundle_reloads_total", result="failure") == 2

    asyncio.run(main())
