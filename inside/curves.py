"""What is drawn of an evaluation: curves and histograms, which take every score, as plain data."""

from __future__ import annotations

from collections.abc import Mapping

from askance.inside.data import Part, Row

TOGETHER = " + "  # between the names of a set of detectors


class Curves(Part):
    """Of each scorer, on clean images and on attacks that succeeded.

    Attributes:
        rates: false-positive rates, ascending.
        detected: true-positive rates at these, {attack: {scorer: rates}}.
        edges: of the bins of each scorer's histograms; the outermost bins take what lies beyond.
        shares: of the clean images ("clean") and of each attack's in these bins, {scorer: {set: shares}}.
        thresholds: above which each scorer flags, {scorer: {level: score}}.
        p_values: the share of the clean images in each of some equal parts of [0, 1], by scorer.
        flagged: how many images of each attack which detectors flag at the level `suspect`, {attack: {detectors, joined
            by TOGETHER, or "": images}}.
    """

    rates: Row
    detected: Mapping[str, Mapping[str, Row]]
    edges: Mapping[str, Row]
    shares: Mapping[str, Mapping[str, Row]]
    thresholds: Mapping[str, Mapping[str, float]]
    p_values: Mapping[str, Row]
    flagged: Mapping[str, Mapping[str, int]]
