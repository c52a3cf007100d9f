"""The residual networks for CIFAR: ResNet20, 32, 44 and 56, with parameter-free shortcuts.

Source: K. He et al., "Deep residual learning for image recognition" (2016), section 4.2, option A.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64)


class Shortcut(nn.Module):
    """Option A: the identity, and where a stage begins every second pixel with zero channels on both sides.

    Args:
        inputs: channels of the block's input.
        outputs: channels of its output.
        stride: 1 or 2.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.padding = (outputs - inputs) // 2
        self.stride = stride

    def forward(self, maps: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        return F.pad(maps[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))


class Block(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)); submodules relu1 and relu2 can be tapped.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        stride: of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = Shortcut(inputs, outputs, stride)
        self.relu2 = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(maps)))))
        output: Tensor = self.relu2(residual + self.shortcut(maps))
        return output


class CifarResNet(nn.Module):
    """6n + 2 layers in three stages of n blocks, [B, 3, 32, 32] -> logits [B, classes].

    The library-network paper taps conv1 (16 x 32 x 32 = 16384 numbers), layer1 (16384), layer2 (32 x 16 x 16 = 8192),
    layer3 (64 x 8 x 8 = 4096) and linear (classes).

    Args:
        blocks: n, blocks of each stage.
        classes: K.
    """

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU()
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], blocks, stride=1)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], blocks, stride=2)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(WIDTHS[2], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, 3, 32, 32]."""
        maps = self.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        logits: Tensor = self.linear(self.pool(maps).flatten(1))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Block(inputs, outputs, stride), *rest)


def resnet20(classes: int = 10) -> CifarResNet:
    """ResNet20: three blocks a stage, 269,722 parameters for 10 classes."""
    return CifarResNet(3, classes)


def resnet32(classes: int = 10) -> CifarResNet:
    """ResNet32: five blocks a stage, 464,154 parameters for 10 classes."""
    return CifarResNet(5, classes)


def resnet44(classes: int = 10) -> CifarResNet:
    """ResNet44: seven blocks a stage, 658,586 parameters for 10 classes."""
    return CifarResNet(7, classes)


def resnet56(classes: int = 10) -> CifarResNet:
    """ResNet56: nine blocks a stage, 853,018 parameters for 10 classes."""
    return CifarResNet(9, classes)
