"""The library of one layer: novel activation patterns as reference points, and what they predict.

Source: J. H. Lee, "Library network, a possible path to explainable neural networks" (2019), Eqs. 1-3.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from askance.detectors.short_list import ShortList

KERNEL_WIDTH = 0.01  # Eq. 2: g(h) = exp(-(1 - h) / 0.01)
BLOCK_PATTERNS = 128  # settled together: larger ones waste time on their Gram matrix


def activation_pattern(activation: Tensor) -> Tensor:
    """Hidden activation pattern u = a / ||a|| (Eq. 1), [B, D] -> [B, D]; a zero vector stays zero (novel to all)."""
    norm = activation.norm(dim=1, keepdim=True)
    return torch.where(norm > 0, activation / norm.clamp_min(torch.finfo(activation.dtype).tiny), 0.0)


def novelty_kernel(similarity: Tensor) -> Tensor:
    """g(h) = exp(-(1 - h) / 0.01), Eq. 2."""
    return torch.exp(-(1 - similarity) / KERNEL_WIDTH)


class Library(nn.Module):
    """The library network of one layer.

    Buffers: `rows` [M, D], the stored unit patterns; `connections` [M, K], the Hebbian sums W of Eq. 2;
    `neurons` [D], the sampled neurons' positions in the flattened layer (empty: all of them); those of `short_list`.
    """

    rows: Tensor
    connections: Tensor
    neurons: Tensor

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self._storage = torch.empty(0)
        self.register_buffer("rows", torch.empty(0, 0))
        self.register_buffer("connections", torch.empty(0, 0))
        self.register_buffer("neurons", torch.empty(0, dtype=torch.long))
        self.short_list = ShortList()

    def begin(self, activation: Tensor, count: int | None, generator: torch.Generator) -> None:
        """Begin with no rows, in the precision of a flattened layer [B, D_l], of which `count` neurons are chosen."""
        self.rows = activation.new_empty(0, 0)
        self.sample(activation.shape[1], count, generator)

    def sample(self, size: int, count: int | None, generator: torch.Generator) -> None:
        """Choose `count` of the layer's `size` neurons without replacement; None, or count >= size, keeps all."""
        if count is not None and count < size:
            self.neurons = torch.randperm(size, generator=generator)[:count].sort().values

    def patterns(self, activation: Tensor) -> Tensor:
        """Unit patterns [B, D] of a flattened layer [B, D_l], in the precision of the stored ones."""
        return activation_pattern(self._sampled(activation))

    def _sampled(self, activation: Tensor) -> Tensor:
        activation = activation.to(self.rows.dtype)
        return activation[:, self.neurons] if self.neurons.numel() else activation

    def extend(self, patterns: Tensor) -> None:
        """Walk `patterns` [B, D] in order and store those novel to all rows before them (strictly below theta).

        The result is that of the one-by-one walk: one product against the rows so far settles most of a block;
        its remaining candidates are settled in order through their Gram matrix.
        """
        for block in patterns.split(BLOCK_PATTERNS):
            self._extend(block)

    def _extend(self, patterns: Tensor) -> None:
        stored = self.rows.shape[0]
        if stored:
            nearest = (patterns @ self.rows.T).amax(dim=1)
            candidates = patterns[nearest < self.threshold]
        else:
            candidates = patterns
        gram = candidates @ candidates.T
        kept: list[int] = []
        # The running maximum similarity of each candidate to the candidates kept before it.
        nearest_kept = torch.full((candidates.shape[0],), -torch.inf, dtype=gram.dtype, device=gram.device)
        for i in range(candidates.shape[0]):
            if nearest_kept[i] < self.threshold:
                kept.append(i)
                nearest_kept = torch.maximum(nearest_kept, gram[i])
        if kept:
            self._append(candidates[kept])

    def _append(self, rows: Tensor) -> None:
        stored, total = self.rows.shape[0], self.rows.shape[0] + rows.shape[0]
        if total > self._storage.shape[0]:  # grow geometrically: appending stays linear in all
            grown = rows.new_empty(max(total, 2 * self._storage.shape[0]), rows.shape[1])
            grown[:stored] = self.rows
            self._storage = grown
        self._storage[stored:total] = rows
        self.rows = self._storage[:total]

    def seal(self) -> None:
        """End construction: release the spare storage; connections are still to be summed."""
        self.rows = self.rows.clone()
        self._storage = torch.empty(0)
        self.connections = torch.empty(0, dtype=torch.float64, device=self.rows.device)

    def connect(self, patterns: Tensor, predicted: Tensor, classes: int) -> None:
        """Add a block's share of the functional connections W[n, m] = sum_k g(h_n(k)) s_m(k) (Eq. 2).

        s_m(k) is +1 if the network's predicted class is m, else -1. The sums run in float64, so that shards merge.
        """
        gate = novelty_kernel(patterns @ self.rows.T).double()
        sign = 2.0 * F.one_hot(predicted, classes).double() - 1.0
        share = gate.T @ sign
        self.connections = share if self.connections.numel() == 0 else self.connections + share

    def similarities(self, activation: Tensor) -> Tensor:
        """h_n(x), the cosine between a flattened layer [B, D_l] and every row, [B, M]; 0 where the layer is zero.

        As `patterns(activation) @ rows.T`, but the few products are divided by the norm, not the many numbers.
        """
        numbers, norm = self._measured(activation)
        return (numbers @ self.rows.T) / norm

    def _measured(self, activation: Tensor) -> tuple[Tensor, Tensor]:
        """The sampled neurons [B, D] and their norm [B, 1], which is above 0."""
        numbers = self._sampled(activation)
        norm = (numbers * numbers).sum(dim=1, keepdim=True).sqrt()
        shortest = math.sqrt(torch.finfo(numbers.dtype).tiny)  # of a shorter one the squares are no numbers any more
        return numbers, norm.clamp_min(shortest)

    def nearest(self, activation: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The rows most similar to a flattened layer [B, D_l]: similarities, descending, and which, [B, count] each, or
        as many as there are. Of a large library nearly always: see `short_list`.
        """
        if len(self.short_list):
            numbers, norm = self._measured(activation)
            found: tuple[Tensor, Tensor] = self.short_list(numbers / norm, self.rows, count)
            return found
        values, rows = self.similarities(activation).topk(min(count, self.rows.shape[0]), dim=1)
        return values, rows

    def predict(self, similarities: Tensor, rows: Tensor) -> Tensor:
        """P(x) = sum over the k most similar rows of W[n, :] h_n(x) (Eq. 3), [B, k] of each -> float64 [B, K]."""
        answer: Tensor = (F.embedding(rows, self.connections) * similarities.double().unsqueeze(-1)).sum(dim=1)
        return answer
