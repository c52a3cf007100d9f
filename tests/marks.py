"""Marks of what `make acceptance` has and `.ci/run` leaves to it: of one rule the more cases, once a few hold."""

import pytest

LASTING = (pytest.mark.acceptance, pytest.mark.lasting)
