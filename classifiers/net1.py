"""Net1: the deep feedforward network of the self-introspection paper, for 28 x 28 grey images.

Source: A. Pardo et al., "Coloring the black box" (2019), Table 1.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

HIDDEN, UNITS = 12, 200


class Net1(nn.Module):
    """Twelve dense ELU layers, [B, C, H, W] -> logits [B, classes]; 601,210 parameters for 28 x 28 and 10 classes.

    The paper's outputs are sigmoids; these are logits. Taps: fc1..fc12 and elu1..elu12 (200; the paper introspects all
    of the latter), fc13 (classes).

    Args:
        classes: K.
        inputs: numbers of an image.
        dropout: share of the hidden layers' outputs dropped in training (the paper keeps 90%).
    """

    def __init__(self, classes: int = 10, inputs: int = 784, dropout: float = 0.1) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for at in range(1, HIDDEN + 1):
            layers[f"fc{at}"] = nn.Linear(inputs if at == 1 else UNITS, UNITS)
            layers[f"elu{at}"] = nn.ELU()
            layers[f"drop{at}"] = nn.Dropout(dropout)
        layers[f"fc{HIDDEN + 1}"] = nn.Linear(UNITS, classes)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W]."""
        numbers = images.flatten(1)
        for layer in self.children():
            numbers = layer(numbers)
        return numbers
