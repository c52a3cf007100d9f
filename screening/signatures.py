"""Signatures: who says that a bundle is theirs, by Ed25519 over its manifest's bytes, which hold all other hashes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from askance.errors import BundleError, ConfigError
from askance.screening.files import read_file, real_folder
from askance.writing import write_whole

SIGNATURES = "manifest.sig"
"""A line for each signature: `ed25519 PUBLIC-KEY SIGNATURE`, both in hexadecimal."""
MOST_BYTES = 64 * 1024
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_LINE = re.compile(r"ed25519 ([0-9a-f]{64}) ([0-9a-f]{128})")
_NEW_KEY = "openssl genpkey -algorithm ed25519 -out private.pem"


@dataclass(frozen=True)
class Keyring:
    """Whose bundles are taken.

    Attributes:
        keys: their public keys, 32 bytes each.
    """

    keys: frozenset[bytes]

    @classmethod
    def read(cls, path: Path) -> Keyring:
        """From a PEM file with one or more public keys; what stands between them is not read.

        Raises:
            ConfigError: it cannot be read, or holds no key, or something else than Ed25519 public keys.
        """
        keys = set()
        for block in _BLOCK.finditer(_content(path, "keyring")):
            kind = block[1].decode()
            if kind != "PUBLIC KEY":
                raise ConfigError(
                    f"the keyring {path} holds a {kind}, expected public keys alone (openssl pkey -pubout)"
                )
            try:
                key = load_pem_public_key(block[0])
            except (ValueError, UnsupportedAlgorithm):
                raise ConfigError(f"the keyring {path} holds a damaged public key: write it anew") from None
            if not isinstance(key, Ed25519PublicKey):
                raise _of_another_kind(key, path)
            keys.add(key.public_bytes_raw())
        if not keys:
            raise ConfigError(f"the keyring {path} holds no public key, expected PEM (openssl pkey -pubout)")
        return cls(frozenset(keys))

    def verify(self, path: Path, manifest: bytes, signatures: bytes | None) -> None:
        """Make sure that one of these keys has signed.

        Args:
            path: of the bundle, for the message.
            manifest: the bytes that are signed.
            signatures: the content of `manifest.sig`; None where there is none.

        Raises:
            BundleError: nobody has, only others have, or what they signed is not this.
        """
        if signatures is None:
            raise BundleError(
                f"{path} is not signed, and only signed bundles are taken here: askance sign {path} --key private.pem"
            )
        signed = _parsed(path, signatures)
        for key in sorted(self.keys & signed.keys()):
            try:
                Ed25519PublicKey.from_public_bytes(key).verify(signed[key], manifest)
            except InvalidSignature:
                continue
            return
        if self.keys & signed.keys():
            raise BundleError(f"{path} has been altered since it was signed: copy it again from whoever signed it")
        others = ", ".join(key.hex()[:16] for key in signed)
        raise BundleError(
            f"{path} is signed by {others}, none of the {len(self.keys)} keys of the keyring: do not use it"
        )


def sign(path: Path, manifest: bytes, key: Path) -> str:
    """Sign a bundle's manifest; signatures of other keys stay.

    Args:
        path: of the bundle.
        manifest: the bytes to sign, of a bundle that was verified.
        key: of a PEM file with an Ed25519 private key, not encrypted.

    Returns:
        The public key in hexadecimal.

    Raises:
        BundleError: what is in `manifest.sig` are no signatures.
        FileError: it cannot be written.
        ConfigError: the key cannot be used.
    """
    private = _private(key)
    folder = real_folder(path)
    signed = _parsed(path, existing) if (existing := read_signatures(folder)) is not None else {}
    own = private.public_key().public_bytes_raw()
    signed[own] = private.sign(manifest)
    lines = "".join(f"ed25519 {public.hex()} {signature.hex()}\n" for public, signature in signed.items())
    write_whole(folder / SIGNATURES, lines.encode())
    return own.hex()


def read_signatures(folder: Path) -> bytes | None:
    """The content of a bundle's `manifest.sig`; None where there is none.

    Raises:
        BundleError: it cannot be read.
    """
    try:
        return read_file(folder, SIGNATURES, MOST_BYTES)
    except FileNotFoundError:
        return None


def _parsed(path: Path, content: bytes) -> dict[bytes, bytes]:
    """{public key: signature}."""
    lines = content.decode("ascii", "replace").splitlines()
    found = [_LINE.fullmatch(line) for line in lines]
    if not lines or None in found:
        raise BundleError(f"{path}: {SIGNATURES} holds no signatures that askance sign made: remove it and sign again")
    return {bytes.fromhex(match[1]): bytes.fromhex(match[2]) for match in found if match is not None}


def _private(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(_content(path, "key"), None)
    except TypeError:
        raise ConfigError(
            f"the key {path} is encrypted: decrypt it for the time of signing (openssl pkey -in {path} -out plain.pem)"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{path} is no private key in PEM: make one with {_NEW_KEY}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _of_another_kind(key, path)
    return key


def _of_another_kind(key: object, path: Path) -> ConfigError:
    kind = type(key).__name__.lstrip("_").removesuffix("PublicKey").removesuffix("PrivateKey")
    return ConfigError(f"{path} holds a key of the kind {kind}, expected Ed25519: make one with {_NEW_KEY}")


def _content(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the {what} {path} cannot be read: {error.strerror}") from None
    if len(content) > MOST_BYTES:
        raise ConfigError(f"the {what} {path} is larger than {MOST_BYTES} bytes: it is another file")
    return content
