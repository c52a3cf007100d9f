"""Peers: other people's detectors, fitted and scored on the same inputs as ours, in the same run."""

from calibration.peers.base import Observation, Peer, observe
from calibration.peers.ensembles import LocalIntrinsicDimensionality, Mahalanobis
from calibration.peers.single import Energy, FeatureSqueezing, MaxSoftmax, NearestNeighbors


def new_peers() -> tuple[Peer, ...]:
    """All peers, unfitted, in the order of the tables."""
    return (
        MaxSoftmax(),
        Energy(),
        Mahalanobis(),
        LocalIntrinsicDimensionality(),
        FeatureSqueezing(),
        NearestNeighbors(),
    )


__all__ = [
    "Energy",
    "FeatureSqueezing",
    "LocalIntrinsicDimensionality",
    "Mahalanobis",
    "MaxSoftmax",
    "NearestNeighbors",
    "Observation",
    "Peer",
    "new_peers",
    "observe",
]
