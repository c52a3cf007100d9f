"""The thresholds by which libraries have about as many rows as wanted, found by bisection on a sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from askance.detectors.library import BLOCK_PATTERNS, Library
from askance.detectors.spool import spool
from askance.detectors.tap import Capture, CaptureStream
from askance.errors import DataError

STEPS = 20  # of the bisection: the threshold is then known to 2 in a million
CLOSE = 0.03  # of the rows wanted: no step is worth more
DECIMALS = 6


def thresholds_for(
    sizes: Mapping[str, int], sample: CaptureStream, of: int | None, sampled_neurons: int | None, seed: int
) -> dict[str, float]:
    """The threshold theta of each layer, by which a walk over all inputs stores about so many rows.

    At a given theta the rows of a walk grow as a power of the inputs walked over, rows(N) = rows(n) (N / n)^b, with b
    from the two halves of the sample: b is 1 where every input is novel, and 0 once nothing is.

    Args:
        sizes: the rows wanted, by layer.
        sample: Captures of a sample of the inputs, walked once.
        of: N, how many inputs the libraries will be built on; None: the sample's own.
        sampled_neurons: as in LibraryNetworkOptions.
        seed: by which they are chosen.

    Returns:
        {layer: theta in [-1, 1]}.

    Raises:
        DataError: the sample is empty, or more rows are wanted than there are inputs.
    """
    generator = torch.Generator().manual_seed(seed)

    def patterns_of(layer: str) -> Callable[[Capture], Tensor]:
        library: Library | None = None

        def feature(capture: Capture) -> Tensor:
            nonlocal library
            if library is None:
                library = Library(math.nan)
                library.begin(capture.flat(layer), sampled_neurons, generator)
            return library.patterns(capture.flat(layer))

        return feature

    patterns = spool(sample, *map(patterns_of, sizes))
    inputs = len(patterns[0]) if of is None else of
    for layer, rows in sizes.items():
        if rows > inputs:
            raise DataError(
                f"a library of {rows} rows is wanted of layer {layer!r}, which learns from {inputs}: ask for fewer"
            )
    return {
        layer: _threshold(of_layer, rows, inputs)
        for (layer, rows), of_layer in zip(sizes.items(), patterns, strict=True)
    }


def _threshold(patterns: Tensor, wanted: int, inputs: int) -> float:
    """Bisection: the more similar a pattern may be to the rows and still be stored, the more are."""
    low, high = -1.0, 1.0
    best, least = high, math.inf
    for _ in range(STEPS):
        threshold = round((low + high) / 2, DECIMALS)
        rows = _rows(patterns, threshold, inputs, wanted)
        error = abs(math.log(rows / wanted))
        if error < least:
            best, least = threshold, error
        if error < CLOSE:
            break
        low, high = (low, threshold) if rows > wanted else (threshold, high)
    return best


def _rows(patterns: Tensor, threshold: float, inputs: int, wanted: int) -> float:
    """About how many rows a walk over all inputs would store; inf once they are too many by far."""
    library = Library(threshold)
    library.rows = patterns.new_empty(0, patterns.shape[1])
    stored = []
    for half in patterns.tensor_split(2):
        for block in half.split(BLOCK_PATTERNS):
            library.extend(block)
            if len(library.rows) > 2 * wanted:
                return math.inf
        stored.append(len(library.rows))
    growth = min(1.0, math.log2(stored[1] / stored[0])) if stored[0] else 1.0
    return float(stored[1] * (inputs / len(patterns)) ** growth)
