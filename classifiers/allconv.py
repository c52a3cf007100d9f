"""AllConv: the all-convolutional network of the self-introspection paper, for 32 x 32 colour images.

Source: A. Pardo et al., "Coloring the black box" (2019), Table 1, Net2; after J. T. Springenberg et al., "Striving for
simplicity: the all convolutional net" (2015).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DENSE = 512
LOGITS = 0.1  # of their usual size, before training


class AllConv(nn.Module):
    """Six ELU convolutions, a global average, three dense ELU layers; [B, 3, 32, 32] -> logits [B, classes].

    1,628,042 parameters for 10 classes. The paper's outputs are sigmoids; these are logits. Its table's line
    "1 x 192, global avg." is read as the average over each of the 192 maps. The convolutions keep the size
    (padding 1) but for conv3 and conv6, which halve it. Taps: conv1..conv6 and elu1..elu6, pool (192), fc1..fc3 and
    elu7..elu9 (512; the paper introspects these), fc4 (classes).

    Args:
        classes: K.
        dropout: share of the dense layers' outputs dropped in training (the paper keeps 80%).
    """

    def __init__(self, classes: int = 10, dropout: float = 0.2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, kernel_size=3, padding=1)
        self.elu1 = nn.ELU()
        self.conv2 = nn.Conv2d(96, 96, kernel_size=3, padding=1)
        self.elu2 = nn.ELU()
        self.conv3 = nn.Conv2d(96, 96, kernel_size=3, padding=1, stride=2)
        self.elu3 = nn.ELU()
        self.conv4 = nn.Conv2d(96, 192, kernel_size=3, padding=1)
        self.elu4 = nn.ELU()
        self.conv5 = nn.Conv2d(192, 192, kernel_size=3, padding=1)
        self.elu5 = nn.ELU()
        self.conv6 = nn.Conv2d(192, 192, kernel_size=3, padding=1, stride=2)
        self.elu6 = nn.ELU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Linear(192, DENSE)
        self.elu7 = nn.ELU()
        self.drop1 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(DENSE, DENSE)
        self.elu8 = nn.ELU()
        self.drop2 = nn.Dropout(dropout)
        self.fc3 = nn.Linear(DENSE, DENSE)
        self.elu9 = nn.ELU()
        self.drop3 = nn.Dropout(dropout)
        self.fc4 = nn.Linear(DENSE, classes)
        self._initialise()

    def _initialise(self) -> None:
        """K. He et al. (2015): by torch's own the signal dies on its way through ten layers; logits begin small."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.fc4.weight.mul_(LOGITS)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, 3, 32, 32]."""
        maps = self.elu2(self.conv2(self.elu1(self.conv1(images))))
        maps = self.elu4(self.conv4(self.elu3(self.conv3(maps))))
        maps = self.elu6(self.conv6(self.elu5(self.conv5(maps))))
        dense = self.pool(maps).flatten(1)
        dense = self.drop1(self.elu7(self.fc1(dense)))
        dense = self.drop2(self.elu8(self.fc2(dense)))
        dense = self.drop3(self.elu9(self.fc3(dense)))
        logits: Tensor = self.fc4(dense)
        return logits
