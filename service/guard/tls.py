"""TLS: the server's certificate, and clients' where they must show one; files that change are read anew."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

import grpc
from pydantic import BaseModel, ConfigDict

from askance.errors import ConfigError
from askance.reading import content_of

logger = logging.getLogger(__name__)


class TlsConfig(BaseModel):
    """Files in PEM form.

    Attributes:
        certificate: the server's, with its chain.
        key: its private key.
        client_ca: whose certificates clients may show; with it they must show one (mutual TLS).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    certificate: Path
    key: Path
    client_ca: Path | None = None


class Certificates:
    """What the files of a TlsConfig hold now; each new connection is served with what is there then.

    A renewed pair that does not fit together is logged and the one before it kept, so that a half-written renewal costs
    nothing.

    Args:
        config: where the files are.
        table: of the settings, for the error messages.

    Raises:
        ConfigError: they cannot be read, or do not fit together.
    """

    def __init__(self, config: TlsConfig, table: str = "tls") -> None:
        self._config = config
        self._table = table
        self._stamp = self._stamps()
        self._now, self._context = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`."""
        made: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            self._now,
            self._fetch,  # type: ignore[arg-type]  # None is for what was before
            require_client_authentication=self._config.client_ca is not None,
        )
        return made

    def context(self) -> ssl.SSLContext:
        """For what serves TLS by Python's own ssl; each handshake under it is made with what is there then."""
        context = self._context

        def fetch(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            self._fetch()
            connection.context = self._context

        context.sni_callback = fetch  # called for clients that send no name, too
        return context

    def _paths(self) -> list[Path]:
        return [p for p in (self._config.certificate, self._config.key, self._config.client_ca) if p is not None]

    def _stamps(self) -> list[tuple[int, int] | None]:
        found: list[tuple[int, int] | None] = []
        for path in self._paths():
            try:
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_ino))
            except OSError:
                found.append(None)
        return found

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC at each handshake: the new certificates, or None for those before."""
        stamp = self._stamps()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        try:
            self._now, self._context = self._read()
        except ConfigError as error:
            logger.error("the certificates are not renewed: %s", error)
            return None
        logger.info("the certificates are renewed")
        return self._now

    def _read(self) -> tuple[grpc.ServerCertificateConfiguration, ssl.SSLContext]:
        contents = []
        for path in self._paths():
            try:
                contents.append(content_of(path))
            except OSError as error:
                raise ConfigError(f"{self._table}: {path} cannot be read: {error.strerror}") from None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._config.certificate, self._config.key)
        except (ssl.SSLError, OSError) as error:
            pair = f"{self._config.certificate} and {self._config.key}"
            raise ConfigError(f"{self._table}: {pair} are not a certificate and its key: {error}") from None
        if self._config.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self._config.client_ca)
            except (ssl.SSLError, OSError) as error:
                raise ConfigError(f"{self._table}: {self._config.client_ca} holds no certificates: {error}") from None
        certificate, key, *rest = contents
        made: grpc.ServerCertificateConfiguration = grpc.ssl_server_certificate_configuration(
            [(key, certificate)], rest[0] if rest else None
        )
        return made, context
