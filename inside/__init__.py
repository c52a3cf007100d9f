"""What goes on inside: figures of a classifier's layers and of what detectors make of them, as plain data."""

from askance.inside.data import ActivationMap, Codes, ErrorEstimates, Inside, SortedLayer
from askance.inside.looking import look

__all__ = ["ActivationMap", "Codes", "ErrorEstimates", "Inside", "SortedLayer", "look"]
