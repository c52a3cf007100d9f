"""Kinds: the detectors by the names that configs, bundles and metrics use, as far as a graph leaves them to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from askance.answers import FUSED, SCORER_OF
from askance.judgement.calibration import SECOND_LOOK, SINGLE_PASS
from askance.plugins import Family
from askance.screening.kinds.constellation import ConstellationOptions
from askance.screening.kinds.introspection import IntrospectionOptions
from askance.screening.kinds.library_network import LibraryNetworkOptions
from askance.screening.kinds.self_organizing_map import SelfOrganizingMapOptions
from askance.screening.kinds.semantic_signature import SemanticSignatureOptions
from askance.screening.options import ExplainingOptions
from askance.screening.reading import Explainer

__all__ = [
    "KINDS",
    "ConstellationOptions",
    "IntrospectionOptions",
    "LibraryNetworkOptions",
    "SelfOrganizingMapOptions",
    "SemanticSignatureOptions",
    "explainer",
]

ENTRY_POINTS = "askance.detectors"
RESERVED = (FUSED, SINGLE_PASS, SECOND_LOOK, *SCORER_OF)  # columns beside the detectors'
KINDS: Family[Any] = Family(
    ENTRY_POINTS,
    object,
    (
        LibraryNetworkOptions,
        IntrospectionOptions,
        SelfOrganizingMapOptions,
        SemanticSignatureOptions,
        ConstellationOptions,
    ),
    name_of=lambda member: str(member.kind),
    reserved=RESERVED,
)
"""By kind the options of ours, which explain, and the detectors of other packages, which explain themselves."""


def explainer(kind: str, options: Mapping[str, Any], content: bytes) -> Explainer:
    """What explains the readings of a detector.

    Args:
        kind: the detector's; one of KINDS.
        options: as plain data.
        content: of the file with its state, which ours do not need.

    Raises:
        pydantic.ValidationError: the options are not its.
    """
    member = KINDS[kind]
    if issubclass(member, ExplainingOptions):
        return member.model_validate(options)
    theirs: Explainer = member.restored(options, content)
    return theirs
