"""Classifiers: the example networks, and how to load one's own."""

from askance.classifiers.allconv import AllConv
from askance.classifiers.checkpoints import load_weights
from askance.classifiers.digits import DigitsCNN
from askance.classifiers.lenet import LeNet
from askance.classifiers.loading import build_classifier
from askance.classifiers.net1 import Net1
from askance.classifiers.resnet import CifarResNet, resnet20, resnet32, resnet44, resnet56
from askance.classifiers.trust import trusting

__all__ = [
    "AllConv",
    "CifarResNet",
    "DigitsCNN",
    "LeNet",
    "Net1",
    "build_classifier",
    "load_weights",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "trusting",
]
