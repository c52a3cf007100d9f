"""Networks of the matrix that askance does not ship: as a team might have written them."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from askance.classifiers import build_classifier


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def small_vgg(classes: int = 10, width: int = 24) -> nn.Sequential:
    """Six 3 x 3 convolutions with batch normalisation, halved twice, averaged; [B, 3, 32, 32] -> [B, classes].

    After K. Simonyan and A. Zisserman, "Very deep convolutional networks" (2015), at a small width.
    """
    return nn.Sequential(
        OrderedDict(
            block1=_block(3, width),
            block2=_block(width, width),
            pool1=nn.MaxPool2d(2),
            block3=_block(width, 2 * width),
            block4=_block(2 * width, 2 * width),
            pool2=nn.MaxPool2d(2),
            block5=_block(2 * width, 4 * width),
            block6=_block(4 * width, 4 * width),
            average=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            linear=nn.Linear(4 * width, classes),
        )
    )


def half_mobilenet(classes: int = 10) -> nn.Sequential:
    """torchvision's MobileNetV2 at half its width, on images of twice the size; [B, 3, 32, 32] -> [B, classes]."""
    mobilenet = build_classifier("torchvision:mobilenet_v2", {"num_classes": classes, "width_mult": 0.5})
    return nn.Sequential(OrderedDict(larger=nn.Upsample(scale_factor=2, mode="bilinear"), mobilenet=mobilenet))


def glyph_net(classes: int = 26) -> nn.Sequential:
    """Two convolutions and two dense layers, no normalisation; [B, 1, 32, 32] -> [B, classes]."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 16, kernel_size=3, padding=1),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(16, 32, kernel_size=3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flat=nn.Flatten(),
            fc1=nn.Linear(32 * 8 * 8, 96),
            relu3=nn.ReLU(),
            fc2=nn.Linear(96, classes),
        )
    )
