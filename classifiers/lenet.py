"""LeNet: the convolutional network of the library-network paper, for 28 x 28 grey images (MNIST).

Source: J. H. Lee, "Library network, a possible path to explainable neural networks" (2019), section 4: PyTorch's
MNIST example of its time.
"""

from __future__ import annotations

from torch import Tensor, nn


class LeNet(nn.Module):
    """Two convolutions and two dense layers, [B, 1, 28, 28] -> logits [B, classes]; 431,080 parameters for 10 classes.

    Every layer is a named submodule that runs once. The paper's four taps are the modules conv1 (20 x 24 x 24 =
    11520 numbers), conv2 (50 x 8 x 8 = 3200), fc1 (500) and fc2 (classes), before ReLU and pooling; relu1, pool1,
    relu2, pool2 and relu3 are there as well.

    Args:
        classes: K.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, kernel_size=5)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 50, kernel_size=5)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(500, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, 1, 28, 28]."""
        maps = self.pool1(self.relu1(self.conv1(images)))
        maps = self.pool2(self.relu2(self.conv2(maps)))
        logits: Tensor = self.fc2(self.relu3(self.fc1(maps.flatten(1))))
        return logits
