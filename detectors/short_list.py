"""Short list: the rows of a large library that are most similar to a pattern, found without a full look at each.

Rows are compared in a few dimensions, their leading singular vectors, and the best of them in all; of very many rows,
where that is less, only those that stand in the cells around the nearest centres. FAISS calls the two
"PCA64,Flat,RFlat" and "PCA64,IVF,RFlat" (J. Johnson, M. Douze and H. Jegou, "Billion-scale similarity search with
GPUs", 2019); here they are tensor operations, which a graph can hold.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

DIMENSIONS = 64
LARGE = 2**22  # numbers of all rows, 16 MiB: from there on no cache holds them, and a look at each waits for memory
LONG = 10_000  # rows above which cells are tried, too: fewer are compared as soon all at once
DECOMPOSED = 1024  # rows behind the singular vectors
ROUNDS = 10  # of k-means
FULLEST = 2  # times the mean, the most rows of a cell: a look at one takes as long as at the fullest
RECALL = 0.998  # the least share of the nearest rows to be found: CPL changes with any one of them, in any layer
LEAST, MOST = 2, 128  # times as many rows as are wanted, compared in full
WORTH = 3  # times fewer numbers to look at than there are in all rows
GATHERED = 32  # numbers of a whole matrix that take as long as one from here and there: no two images share those
ALONE = 6  # the same for one image, for which a matrix waits for memory, too


def is_large(rows: Tensor) -> bool:
    """Whether rows [M, D] have so many numbers that a short list of them may be worth its while."""
    return rows.numel() >= LARGE


class ShortList(nn.Module):
    """The short list of one library; empty where looking at every row is as well.

    Buffers: `axes` [D, d], the dimensions; `reduced` [M, d], the rows in them; `centres` [C, d]; `cells` [C, S], the
    rows of each cell, and -1 where it has fewer, both empty where every row is compared in those dimensions; `effort`
    [2]: how many cells are looked at, and rows in full.
    """

    axes: Tensor
    reduced: Tensor
    centres: Tensor
    cells: Tensor
    effort: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("axes", "reduced", "centres"):
            self.register_buffer(name, torch.empty(0))
        for name in ("cells", "effort"):
            self.register_buffer(name, torch.empty(0, dtype=torch.long))
        self._effort: tuple[int, ...] = ()

    def __len__(self) -> int:
        """d, in how many dimensions rows are compared; 0: the list is empty."""
        return self.axes.shape[1] if self.axes.ndim > 1 else 0

    @classmethod
    @torch.no_grad()
    def of(cls, rows: Tensor, patterns: Tensor, count: int) -> Self:
        """The one that with the least effort finds nearly all of the `count` nearest rows of patterns.

        Args:
            rows: [M, D], unit vectors.
            patterns: [N, D], as they will be looked up; others than the rows.
            count: how many of the nearest are wanted.

        Returns:
            An empty one for rows that are not large (`is_large`), and where it would have to look at too many.
        """
        if not is_large(rows):
            return cls()
        axes = _leading(rows)
        reduced = rows @ axes
        tried = [cls._over(axes, reduced)]
        if len(rows) > LONG:
            tried.append(cls._over(axes, reduced, *_cells(reduced, count)))
        found = [one for one in tried if one._settle_for(rows, patterns, count)]
        return min(found, key=lambda one: one._takes(rows, *one._effort, each=ALONE), default=cls())

    @classmethod
    def _over(cls, axes: Tensor, reduced: Tensor, centres: Tensor | None = None, cells: Tensor | None = None) -> Self:
        made = cls()
        made.axes, made.reduced = axes, reduced
        if centres is not None and cells is not None:
            made.centres, made.cells = centres, cells
        return made

    def _settle_for(self, rows: Tensor, patterns: Tensor, count: int) -> bool:
        """Settle for the least effort that finds nearly all; whether that is worth it."""
        looked_at, listed = min(1, len(self.cells)), MOST * count
        while self._recall_by(looked_at, listed, rows, patterns, count) < RECALL:
            looked_at *= 2
            if not 0 < looked_at <= len(self.cells) or not self._is_worth(rows, looked_at, LEAST * count):
                return False
        listed = LEAST * count
        while self._recall_by(looked_at, listed, rows, patterns, count) < RECALL:
            listed *= 2
        return self._is_worth(rows, *self._effort)

    def _recall_by(self, looked_at: int, listed: int, rows: Tensor, patterns: Tensor, count: int) -> float:
        """The recall with so much effort, which it keeps."""
        compared = looked_at * self.cells.shape[1] if looked_at else len(self.reduced)
        self.effort = torch.tensor([looked_at, min(listed, compared)])
        self.settle()
        return self.recall(rows, patterns, count)

    def _is_worth(self, rows: Tensor, looked_at: int, listed: int) -> bool:
        """Whether so much effort is less than a look at every row."""
        return WORTH * self._takes(rows, looked_at, listed, each=GATHERED) <= rows.numel()

    def _takes(self, rows: Tensor, looked_at: int, listed: int, *, each: int) -> int:
        """How many numbers of a whole matrix so much effort takes as long as; one from here and there as `each`."""
        compared = self.centres if looked_at else self.reduced
        gathered = looked_at * self.cells.shape[-1] * len(self) + listed * rows.shape[1]
        return self.axes.numel() + compared.numel() + each * gathered

    def settle(self) -> None:
        """Derive from the buffers what a look-up needs as plain numbers."""
        self._effort = tuple(self.effort.tolist())

    @torch.no_grad()
    def recall(self, rows: Tensor, patterns: Tensor, count: int) -> float:
        """The share of the `count` nearest rows of patterns [N, D] that are found."""
        nearest = (patterns @ rows.T).topk(count, dim=1).indices
        found = torch.cat([self(part, rows, count)[1] for part in patterns.split(32)])
        return float((nearest.unsqueeze(2) == found.unsqueeze(1)).any(dim=2).double().mean())

    def forward(self, patterns: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The most similar rows [M, D] of patterns [B, D]: similarities, descending, and which, [B, count] each."""
        looked_at, listed = self._effort
        reduced = patterns @ self.axes
        if looked_at:
            nearest = (reduced @ self.centres.T).topk(looked_at, dim=1).indices
            candidates = F.embedding(nearest, self.cells).flatten(1)
            best = _similarities(reduced, self.reduced, candidates).topk(listed, dim=1).indices
            candidates = candidates.gather(1, best)
        else:
            candidates = (reduced @ self.reduced.T).topk(listed, dim=1).indices
        values, best = _similarities(patterns, rows, candidates).topk(count, dim=1)
        return values, candidates.gather(1, best)


def _similarities(patterns: Tensor, rows: Tensor, which: Tensor) -> Tensor:
    """Products of patterns [B, D] with some rows each, [B, n]; -inf for row -1."""
    products = (F.embedding(which.clamp_min(0), rows) @ patterns.unsqueeze(2)).squeeze(2)
    return products.masked_fill(which < 0, -torch.inf)


def _leading(rows: Tensor) -> Tensor:
    """The leading singular vectors of rows [M, D], [D, DIMENSIONS] or fewer."""
    some = rows[:: -(-len(rows) // DECOMPOSED)]
    vectors: Tensor = torch.linalg.svd(some, full_matrices=False).Vh
    return vectors[:DIMENSIONS].T.contiguous()


def _cells(reduced: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Cells of rows [M, d] with `least` rows each or more: centres [C, d], rows of each [C, S]."""
    import faiss  # of the extra `calibration`: only what is looked up in needs none of it

    numbers = np.ascontiguousarray(reduced.cpu().numpy(), dtype=np.float32)
    wanted = round(2 * len(numbers) ** 0.5)
    few = {"min_points_per_centroid": 1, "max_points_per_centroid": len(numbers)}
    means = faiss.Kmeans(numbers.shape[1], wanted, niter=ROUNDS, seed=1, spherical=True, **few)
    means.train(numbers)
    assert means.centroids is not None
    sizes = np.bincount(means.assign(numbers)[1], minlength=wanted)
    index = faiss.IndexFlatIP(numbers.shape[1])
    index.add(means.centroids[sizes >= least])
    nearest = index.search(numbers, 1)[1][:, 0]
    fullest = max(FULLEST * len(numbers) // wanted, 2 * least)
    cells: list[NDArray[np.int64]] = []
    for cell in range(index.ntotal):
        own = (nearest == cell).nonzero()[0]
        cells += np.array_split(own, -(-len(own) // fullest))
    padded = np.full((len(cells), max(map(len, cells))), -1)
    for place, own in zip(padded, cells, strict=True):
        place[: len(own)] = own
    centres = np.stack([numbers[own].mean(axis=0) for own in cells])
    return F.normalize(torch.from_numpy(centres).to(reduced), dim=1), torch.from_numpy(padded).to(reduced.device)
