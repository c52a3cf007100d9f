"""What readings amount to: conformal p-values, fusion, and the verdict; in numpy alone, whatever read the images."""

from askance.judgement.background import Background
from askance.judgement.calibration import Calibration, Fused, Levels, SecondLook
from askance.judgement.conformal import rank
from askance.judgement.fusion import Fusion
from askance.judgement.margins import Bounds
from askance.judgement.readings import Readings

__all__ = ["Background", "Bounds", "Calibration", "Fused", "Fusion", "Levels", "Readings", "SecondLook", "rank"]
