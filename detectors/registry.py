"""The table of the detectors: the names that configs, bundles and metrics use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from askance.detectors.constellation import Constellation
from askance.detectors.detector import Detector
from askance.detectors.introspection import Introspection
from askance.detectors.library_network import LibraryNetwork
from askance.detectors.self_organizing_map import SelfOrganizingMap
from askance.detectors.semantic_signature import SemanticSignature
from askance.plugins import Family
from askance.screening.kinds import ENTRY_POINTS, RESERVED

DETECTORS: Family[Detector] = Family(
    ENTRY_POINTS,
    Detector,
    (LibraryNetwork, Introspection, SelfOrganizingMap, SemanticSignature, Constellation),
    name_of=lambda detector: detector.kind,
    reserved=RESERVED,
)
"""All detectors by kind, in the order of configs and tables."""


def restored(kind: str, options: Mapping[str, Any], content: bytes) -> Detector:
    """A fitted detector as a bundle holds it; as `Detector.restored` for the one of that kind.

    Raises:
        BundleError: the state is not its.
        pydantic.ValidationError: the options are not its.
    """
    return DETECTORS[kind].restored(options, content)
