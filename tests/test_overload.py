"""A real server that is asked for more than it can do, and is stopped meanwhile: every call gets one right answer."""

from __future__ import annotations

import asyncio

import pytest
from calibration_support import DigitsRun

from askance.calibration.sources import load_source
from benchmarks.overload import measure


@pytest.mark.acceptance
@pytest.mark.lasting
def test_too_much_is_refused_and_nothing_is_lost(digits_run: DigitsRun) -> None:
    images = list(load_source("sklearn:digits").x[:50].numpy())
    found = asyncio.run(measure(digits_run.bundle.path, images, factor=2.0, seconds=5.0, queue_size=16))
    assert set(found.codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert found.foreign == 0
    # once it is told to stop: as before, or refused; then nobody is there any more
    refusals = (
        "RESOURCE_EXHAUSTED the queue is full",
        "UNAVAILABLE the server is draining",
        "UNAVAILABLE failed to conn",
    )
    assert all(what == "OK" or what.startswith(refusals) for what in found.drained), found.drained
    assert found.drained["OK"] > 0
    assert "UNAVAILABLE the server is draining" in found.drained
    assert found.exit_code == 0
