"""What suspicion is: hooks, the detectors in torch, and how a bundle of them is written."""

from askance.detectors.bundle import Bundle
from askance.detectors.constellation import Constellation
from askance.detectors.detector import Detector, Inputs, tap_for
from askance.detectors.introspection import Introspection
from askance.detectors.library_network import LibraryNetwork
from askance.detectors.registry import DETECTORS
from askance.detectors.self_organizing_map import SelfOrganizingMap
from askance.detectors.semantic_signature import SemanticSignature
from askance.detectors.tap import Capture, CaptureStream, Tap
from askance.screening.kinds import (
    ConstellationOptions,
    IntrospectionOptions,
    LibraryNetworkOptions,
    SelfOrganizingMapOptions,
    SemanticSignatureOptions,
)
from askance.screening.options import Options
from askance.screening.reading import Reading
from askance.screening.screen import Screen

__all__ = [
    "DETECTORS",
    "Bundle",
    "Capture",
    "CaptureStream",
    "Constellation",
    "ConstellationOptions",
    "Detector",
    "Inputs",
    "Introspection",
    "IntrospectionOptions",
    "LibraryNetwork",
    "LibraryNetworkOptions",
    "Options",
    "Reading",
    "Screen",
    "SelfOrganizingMap",
    "SelfOrganizingMapOptions",
    "SemanticSignature",
    "SemanticSignatureOptions",
    "Tap",
    "tap_for",
]
