"""InfoVAE: an autoencoder whose latent is pulled towards N(0, I) by the maximum mean discrepancy.

Sources: A. Pardo et al., "Coloring the black box" (2019), section 2.5, Table 2; S. Zhao et al., "InfoVAE" (2017).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from itertools import islice, pairwise

import torch
from torch import Tensor, nn

from askance.errors import DataError

WIDTH = 200  # units of every hidden layer (Table 2)
DEPTH = 3


def dense(inputs: int, outputs: int) -> nn.Sequential:
    """The papers' network: three hidden layers of 200 ELU units and a linear end."""
    sizes = [inputs] + [WIDTH] * DEPTH
    hidden = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ELU())]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], outputs))


def maximum_mean_discrepancy(x: Tensor, y: Tensor) -> Tensor:
    """Squared MMD between samples x and y, [B, d] each, with the inverse multiquadratic kernel C / (C + ||a - b||^2).

    C = 2d, the expected squared distance of two draws from N(0, I) (Tolstikhin et al. 2018). The biased estimate
    (diagonals kept): never negative, 0 for equal samples.
    """
    scale = 2.0 * x.shape[1]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = (a**2).sum(dim=1)[:, None] + (b**2).sum(dim=1)[None, :] - 2 * a @ b.T
        return scale / (scale + squared.clamp_min(0))

    return kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean()


class InfoVAE(nn.Module):
    """Encoder D_h-200-200-200-z and decoder z-200-200-200-D_h, ELU with linear ends.

    Args:
        features: D_h.
        latent_dimensions: z.
    """

    def __init__(self, features: int, latent_dimensions: int) -> None:
        super().__init__()
        self.encoder = dense(features, latent_dimensions)
        self.decoder = dense(latent_dimensions, features)

    def hidden(self, h: Tensor) -> Tensor:
        """The encoder's last hidden layer, before the projection to z: [B, D_h] -> [B, 200]."""
        hidden: Tensor = self.encoder[:-1](h)
        return hidden

    def project(self, hidden: Tensor) -> Tensor:
        """The projection of the last hidden layer to the latent: [B, 200] -> [B, z]."""
        latent: Tensor = self.encoder[-1](hidden)
        return latent

    def decode(self, z: Tensor) -> Tensor:
        """Activations that a latent point stands for: [B, z] -> [B, D_h]."""
        decoded: Tensor = self.decoder(z)
        return decoded

    def loss(self, h: Tensor, discrepancy_weight: float, generator: torch.Generator) -> Tensor:
        """1/2 ||h_hat - h||^2 (mean over the batch) + weight * MMD(z, N(0, I)), a scalar."""
        z = self.project(self.hidden(h))
        prior = torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device)
        reconstruction = 0.5 * ((self.decode(z) - h) ** 2).sum(dim=1).mean()
        return reconstruction + discrepancy_weight * maximum_mean_discrepancy(z, prior)


def train(
    module: nn.Module,
    loss: Callable[[Tensor], Tensor],
    training: Tensor,
    validation: Tensor,
    *,
    cycles: int,
    cycle_steps: int,
    batch_size: int,
    peak_learning_rate: float,
    patience: int,
    generator: torch.Generator,
) -> float:
    """Adam under a triangular cyclic learning rate, early stopping on a validation split; keeps the best weights.

    Args:
        module: whose parameters learn.
        loss: maps row indices [b] into the caller's features to the batch's scalar loss.
        training: row indices to learn from, int64 [n].
        validation: row indices that decide when to stop, int64 [m].
        cycles: at most this many triangles; the validation loss is read at the end of each (paper, section 2.6).
        cycle_steps: gradient steps per triangle.
        batch_size: rows per step.
        peak_learning_rate: the top of each triangle; its foot is a hundredth of it.
        patience: cycles without improvement before stopping.
        generator: of the shuffling.

    Returns:
        The best validation loss.

    Raises:
        DataError: it never was finite.
    """
    optimizer = torch.optim.Adam(module.parameters(), lr=peak_learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CyclicLR(
        optimizer,
        peak_learning_rate / 100,
        peak_learning_rate,
        step_size_up=max(1, cycle_steps // 2),
        cycle_momentum=False,
    )
    best, best_state, stale = math.inf, copy.deepcopy(module.state_dict()), 0
    batches = _shuffled_batches(training, batch_size, generator)
    for _ in range(cycles):
        for rows in islice(batches, cycle_steps):
            optimizer.zero_grad()
            loss(rows).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            losses = [float(loss(rows)) * len(rows) for rows in validation.split(4 * batch_size)]
        current = sum(losses) / len(validation)
        if current < best:
            best, best_state, stale = current, copy.deepcopy(module.state_dict()), 0
        else:
            stale += 1
            if stale >= patience:
                break
    if math.isinf(best):
        raise DataError(
            "training diverged (the loss is not finite): lower peak_learning_rate, or check the activations"
        )
    module.load_state_dict(best_state)
    return best


def _shuffled_batches(rows: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of `rows` without end, each pass over them in a new order."""
    while True:
        yield from rows[torch.randperm(len(rows), generator=generator)].split(batch_size)
