"""The figures of the source papers, drawn of a bundle, each with what the paper says of it and what is so here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from askance.papers import introspection, library_network, neurons, self_organizing_map, semantic_signature
from askance.papers.plates import Plate, keep_plates
from askance.papers.study import Study

PAPERS: Mapping[str, Callable[[Study], Iterator[Plate]]] = {
    "000": library_network.plates,
    "001": introspection.plates,
    "002": neurons.plates,
    "003": semantic_signature.plates,
    "004": self_organizing_map.plates,
}
"""By the number that the project gives to a paper."""

__all__ = ["PAPERS", "Plate", "Study", "keep_plates"]
