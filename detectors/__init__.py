"""What suspicion is: hooks, the detectors, conformal p-values, fusion, the screen, and the bundle on disk."""

from askance.detectors.bundle import Bundle
from askance.detectors.constellation import Constellation, ConstellationOptions
from askance.detectors.detector import Detector, Inputs, Options, Reading, tap_for
from askance.detectors.introspection import Introspection, IntrospectionOptions
from askance.detectors.library_network import LibraryNetwork, LibraryNetworkOptions
from askance.detectors.registry import DETECTORS
from askance.detectors.screen import Screen
from askance.detectors.self_organizing_map import SelfOrganizingMap, SelfOrganizingMapOptions
from askance.detectors.semantic_signature import SemanticSignature, SemanticSignatureOptions
from askance.detectors.tap import Capture, CaptureStream, Tap

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
