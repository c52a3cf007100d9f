"""Classifiers: the example networks, and how to load one's own."""

from classifiers.allconv import AllConv
from classifiers.digits import DigitsCNN
from classifiers.lenet import LeNet
from classifiers.loading import build_classifier, load_weights
from classifiers.resnet import CifarResNet, resnet20, resnet32, resnet44, resnet56

__all__ = [
    "AllConv",
    "CifarResNet",
    "DigitsCNN",
    "LeNet",
    "build_classifier",
    "load_weights",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
]
