"""Certificates for tests: an authority, and what it has issued, as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme


@dataclass
class Pems:
    """An authority, the server's files, and clients' of that authority and of another."""

    folder: Path
    authority: trustme.CA

    def write(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def issue(self, name: str, *identities: str, authority: trustme.CA | None = None, **more: Any) -> tuple[Path, Path]:
        """(certificate, key) files."""
        made = (authority or self.authority).issue_cert(*identities, **more)
        chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
        return self.write(f"{name}.pem", chain), self.write(f"{name}.key", made.private_key_pem.bytes())

    @property
    def ca(self) -> Path:
        return self.write("ca.pem", self.authority.cert_pem.bytes())
