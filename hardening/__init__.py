"""Hardening: a classifier trained on images that are attacked as it learns."""

from askance.hardening.strength import Strength
from askance.hardening.training import Hardened, harden

__all__ = ["Hardened", "Strength", "harden"]
