"""The table of the detectors: the names that configs, bundles and metrics use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from askance.answers import FUSED, SCORER_OF
from askance.detectors.constellation import Constellation
from askance.detectors.detector import Detector
from askance.detectors.introspection import Introspection
from askance.detectors.library_network import LibraryNetwork
from askance.detectors.self_organizing_map import SelfOrganizingMap
from askance.detectors.semantic_signature import SemanticSignature
from askance.errors import BundleError, did_you_mean
from askance.judgement.calibration import SINGLE_PASS
from askance.plugins import Family

DETECTORS: Family[Detector] = Family(
    "askance.detectors",
    Detector,
    (LibraryNetwork, Introspection, SelfOrganizingMap, SemanticSignature, Constellation),
    name_of=lambda detector: detector.kind,
    reserved=(FUSED, SINGLE_PASS, *SCORER_OF),  # columns beside the detectors'
)
"""All detectors by kind, in the order of configs and tables."""


def unfitted(kind: str, options: Mapping[str, Any]) -> Detector:
    """Build the detector `kind` with `options` as plain data, ready for `restore`.

    Raises:
        BundleError: there is no such detector.
        pydantic.ValidationError: the options are not its.
    """
    if kind not in DETECTORS:
        raise BundleError(f"unknown detector {kind!r}: {did_you_mean(kind, DETECTORS)}")
    detector = DETECTORS[kind]
    return detector(detector.options_class.model_validate(options))
