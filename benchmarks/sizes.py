"""Sizes: how much a run measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """How much a run measures.

    Attributes:
        fit_images: images the detectors are fitted on, by network; the library look-up's cost grows with their rows.
        calibration_images: behind each of the two conformal tables; the default levels need 99.
        pairs: measurements of screening at each batch size.
        calls: timed calls behind one such measurement, by batch size.
        exported: which networks are measured as graphs, too: without views, with them, or both.
        library_pairs: measurements of library construction.
        library_images: the most that the libraries are then built of, by whole batches.
        clients: numbers of concurrent clients.
        rounds: slices of load on each server.
        slice_seconds: how long a slice lasts.
        slice_requests: the most requests in one.
    """

    fit_images: dict[str, int]
    calibration_images: int
    pairs: int
    calls: dict[int, int]
    exported: dict[str, tuple[bool, ...]]
    library_pairs: int
    library_images: int
    clients: tuple[int, ...]
    rounds: int
    slice_seconds: float
    slice_requests: int


FULL = Sizes(
    fit_images={"LeNet": 59_000, "ResNet44": 2000},
    calibration_images=300,
    pairs=25,
    calls={1: 10, 32: 3},
    exported={"LeNet": (False, True), "ResNet44": (False, True)},
    library_pairs=3,
    library_images=5000,
    clients=(1, 16),
    rounds=9,
    slice_seconds=2.0,
    slice_requests=20_000,
)
QUICK = Sizes(
    fit_images={"LeNet": 200, "ResNet44": 100},
    calibration_images=100,
    pairs=2,
    calls={1: 2, 32: 1},
    exported={"LeNet": (False,)},
    library_pairs=1,
    library_images=200,
    clients=(1, 16),
    rounds=1,
    slice_seconds=0.3,
    slice_requests=500,
)
"""A smoke run: every part works, no figure means much."""
