"""Opening: a bundle's Screen, by its graph or in torch, which is imported only where it is to compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

from askance.engines import Engine
from askance.errors import BundleError, extra_needed
from askance.screening.bundle import SealedBundle
from askance.screening.screen import Screen

if TYPE_CHECKING:
    from askance.detectors.bundle import BuildClassifier


def screen_of(
    bundle: SealedBundle, engine: Engine, build: BuildClassifier, *, single_pass: bool = False, threads: int = 0
) -> Screen:
    """The Screen that a bundle describes.

    Args:
        bundle: opened.
        engine: what computes it; AUTO takes the bundle's graph where it has one, else torch.
        build: makes the classifier, where torch computes.
        single_pass: leave out the detectors that need views of the input.
        threads: that compute, with torch in all of this process; 0: as many as there are cores, with torch as it is.

    Raises:
        BundleError: a part does not fit; or there is no graph, and nothing else may compute, or torch is not installed.
            The message names the bundle.
    """
    if bundle.goes_by_graph(engine):
        return bundle.screen_by_graph(single_pass=single_pass, threads=threads)
    try:
        from askance.detectors.bundle import Bundle
    except ModuleNotFoundError as error:
        raise BundleError(
            f"{bundle.path} is to be computed by torch, and {extra_needed(str(error.name), 'torch')}"
        ) from None
    return Bundle.of(bundle).screen(build, single_pass=single_pass, threads=threads)
