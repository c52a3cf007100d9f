"""DigitsCNN: a small convolutional network for scikit-learn's 8 x 8 handwritten digits."""

from __future__ import annotations

from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """Two convolutions and two dense layers, [B, 1, 8, 8] -> logits [B, classes]; 38,282 parameters for 10 classes.

    Every layer is a named submodule that runs once, so that each can be tapped: conv1, relu1 (16 x 8 x 8), conv2,
    relu2 (32 x 8 x 8), pool (32 x 4 x 4), fc1, relu3 (64), fc2 (classes).

    Args:
        classes: K.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=3, padding=1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(32 * 4 * 4, 64)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, 1, 8, 8]."""
        maps = self.pool(self.relu2(self.conv2(self.relu1(self.conv1(images)))))
        logits: Tensor = self.fc2(self.relu3(self.fc1(maps.flatten(1))))
        return logits
