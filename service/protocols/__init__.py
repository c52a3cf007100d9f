"""Protocols: how clients ask. Each is one file, and one line in PROTOCOLS."""

from collections.abc import Mapping

from askance.service.guard.admission import Kind
from askance.service.protocols.base import Parts, Protocol
from askance.service.protocols.inference import InferenceProtocol
from askance.service.protocols.rest import RestProtocol
from askance.service.protocols.screening import ScreeningProtocol

PROTOCOLS: Mapping[str, type[Protocol]] = {
    one.name: one for one in (ScreeningProtocol, InferenceProtocol, RestProtocol)
}
"""All protocols by name; a server starts and stops whatever stands here."""

METHODS: Mapping[str, Kind] = {name: kind for one in PROTOCOLS.values() for name, kind in one.methods.items()}
"""All methods of all protocols."""
SERVICES: Mapping[str, Mapping[str, Kind]] = {
    one.service: one.methods for one in PROTOCOLS.values() if one.service is not None
}
"""The gRPC services, by full name, with their methods."""
INFERENCES = tuple(name for name, kind in METHODS.items() if kind in (Kind.SCREENS, Kind.STREAMS))
"""The methods that have images screened."""

__all__ = ["INFERENCES", "METHODS", "PROTOCOLS", "SERVICES", "Parts", "Protocol"]
