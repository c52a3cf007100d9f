"""Peers: other people's detectors, fitted and scored on the same inputs as ours, in the same run."""

from askance.calibration.config import PeerName
from askance.calibration.peers.base import Observation, Peer, observe
from askance.calibration.peers.ensembles import LocalIntrinsicDimensionality, Mahalanobis
from askance.calibration.peers.single import Energy, FeatureSqueezing, MaxSoftmax, NearestNeighbors

PEERS: dict[PeerName, type[Peer]] = {
    peer.name: peer
    for peer in (MaxSoftmax, Energy, Mahalanobis, LocalIntrinsicDimensionality, FeatureSqueezing, NearestNeighbors)
}
"""All peers by name, in the order of the tables."""

__all__ = [
    "PEERS",
    "Energy",
    "FeatureSqueezing",
    "LocalIntrinsicDimensionality",
    "Mahalanobis",
    "MaxSoftmax",
    "NearestNeighbors",
    "Observation",
    "Peer",
    "observe",
]
