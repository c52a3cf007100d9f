"""What suspicion is: hooks, the detectors, conformal p-values, fusion, the screen, and the bundle on disk."""

from detectors.bundle import Bundle
from detectors.constellation import Constellation, ConstellationOptions
from detectors.detector import Detector, Reading, tap_for
from detectors.errors import AskanceError, NotFittedError
from detectors.fusion import Fusion
from detectors.introspection import Introspection, IntrospectionOptions
from detectors.library_network import LibraryNetwork, LibraryNetworkOptions
from detectors.screen import Calibration, Levels, Prediction, Screen, ScreenError, Screening, Verdict
from detectors.self_organizing_map import SelfOrganizingMap, SelfOrganizingMapOptions
from detectors.semantic_signature import SemanticSignature, SemanticSignatureOptions
from detectors.tap import Capture, CaptureStream, Tap

__all__ = [
    "AskanceError",
    "Bundle",
    "Calibration",
    "Capture",
    "CaptureStream",
    "Constellation",
    "ConstellationOptions",
    "Detector",
    "Fusion",
    "Introspection",
    "IntrospectionOptions",
    "Levels",
    "LibraryNetwork",
    "LibraryNetworkOptions",
    "NotFittedError",
    "Prediction",
    "Reading",
    "Screen",
    "ScreenError",
    "Screening",
    "SelfOrganizingMap",
    "SelfOrganizingMapOptions",
    "SemanticSignature",
    "SemanticSignatureOptions",
    "Tap",
    "Verdict",
    "tap_for",
]
