"""The detectors by name, as configs, bundles and metrics spell them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from askance.detectors.constellation import Constellation, ConstellationOptions
from askance.detectors.detector import Detector, Options
from askance.detectors.introspection import Introspection, IntrospectionOptions
from askance.detectors.library_network import LibraryNetwork, LibraryNetworkOptions
from askance.detectors.self_organizing_map import SelfOrganizingMap, SelfOrganizingMapOptions
from askance.detectors.semantic_signature import SemanticSignature, SemanticSignatureOptions
from askance.errors import BundleError, did_you_mean

OPTIONS: Mapping[str, type[Options]] = {
    LibraryNetwork.kind: LibraryNetworkOptions,
    Introspection.kind: IntrospectionOptions,
    SelfOrganizingMap.kind: SelfOrganizingMapOptions,
    SemanticSignature.kind: SemanticSignatureOptions,
    Constellation.kind: ConstellationOptions,
}

_BUILDERS: Mapping[str, Callable[[Any], Detector]] = {
    LibraryNetwork.kind: LibraryNetwork,
    Introspection.kind: Introspection,
    SelfOrganizingMap.kind: SelfOrganizingMap,
    SemanticSignature.kind: SemanticSignature,
    Constellation.kind: Constellation,
}


def unfitted(kind: str, options: Mapping[str, Any]) -> Detector:
    """Build the detector `kind` with `options` as plain data, ready for `restore`.

    Raises:
        BundleError: there is no such detector.
        pydantic.ValidationError: the options are not its.
    """
    if kind not in OPTIONS:
        raise BundleError(f"unknown detector {kind!r}: {did_you_mean(kind, OPTIONS)}")
    return _BUILDERS[kind](OPTIONS[kind].model_validate(options))
