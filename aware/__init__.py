"""Aware: attackers who know the detectors, and how far they get."""

from askance.aware.effort import Effort
from askance.aware.evaluation import AwareEvaluation, Cost, Gate, Row
from askance.aware.run import evaluate_aware

__all__ = ["AwareEvaluation", "Cost", "Effort", "Gate", "Row", "evaluate_aware"]
