"""Torus map: a self-organizing map of one layer's codes, on a grid that wraps in both directions.

Source: T. Kohonen's batch algorithm; the torus and its unfolding after J. H. Lee and S. Vijayan, "Generalization
ability and vulnerabilities to adversarial perturbations".
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from askance.errors import BundleError

MOST_VARYING = 2048  # numbers of a code whose covariance is learned
LEAST_VARIANCE = 1e-6  # of an axis, as a share of the greatest


def torus_offset(a: Tensor, b: Tensor, side: int) -> Tensor:
    """Shortest step from grid positions `a` to `b` [..., 2] on a torus: the nearest copy on the 3 x 3 tiling."""
    return torch.remainder(b - a + side / 2, side) - side / 2


def torus_distance(a: Tensor, b: Tensor, side: int) -> Tensor:
    """Euclidean distance on the torus between grid positions [..., 2]."""
    distance: Tensor = torch.linalg.vector_norm(torus_offset(a, b, side), dim=-1)
    return distance


def lengths(squares: Tensor) -> Tensor:
    """Roots of squares that rounding may have made negative."""
    return squares.clamp_min(0).sqrt()


def grid_positions(side: int) -> Tensor:
    """(row, column) of every unit, [side * side, 2]."""
    axis = torch.arange(side, dtype=torch.float32)
    return torch.cartesian_prod(axis, axis)


def class_center(density: Tensor, side: int) -> Tensor:
    """Centre of mass of a class's best matching units on the unfolded map, wrapped back, [2].

    Args:
        density: [side * side] hits of the class on each unit, not all zero.

    The nearest copies are taken around the unit with the least mean squared torus distance to the hits, so the centre
    does not depend on where the torus was cut.
    """
    positions = grid_positions(side).to(density.device)
    offsets = torus_offset(positions[:, None], positions[None, :], side)
    weight = density.to(positions.dtype) / density.sum()
    anchor = int(((offsets**2).sum(dim=2) @ weight).argmin())
    return torch.remainder(positions[anchor] + weight @ offsets[anchor], side)


class TorusMap(nn.Module):
    """The map of one layer: standardisation, units, ownership, and its clean distances as a yardstick.

    Buffers: `mean`, `scale` [D]; `units` [U, D] in standardised space; `hits` [U, K], how often each predicted class
    landed on each unit (sums: they merge); `yardstick` [Q], sorted clean BMU distances; `class_means` [K, D] and
    `minor_axes` [D, M], for `minor_distances`. Derived: `owned` [U, K]; units and axes in float64, in which they are
    multiplied.
    """

    mean: Tensor
    scale: Tensor
    units: Tensor
    hits: Tensor
    yardstick: Tensor
    class_means: Tensor
    minor_axes: Tensor
    owned: Tensor
    _wide_units: Tensor
    _unit_squares: Tensor
    _wide_axes: Tensor

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        for name in ("mean", "scale", "units", "hits", "yardstick", "class_means", "minor_axes"):
            self.register_buffer(name, torch.empty(0))
        for name in ("owned", "_wide_units", "_unit_squares", "_wide_axes"):
            self.register_buffer(name, torch.empty(0), persistent=False)

    def standardise(self, codes: Tensor) -> Tensor:
        """Codes [B, D] in units of the fit split's standard deviations."""
        return (codes - self.mean) / self.scale

    def distances(self, standardised: Tensor) -> Tensor:
        """Distance of standardised codes [B, D] to every unit, [B, U]."""
        return lengths(self.squares(standardised)).to(standardised.dtype)

    def squares(self, standardised: Tensor) -> Tensor:
        """Their squares, but for rounding, float64 [B, U]; `lengths` makes distances of them."""
        # By a matrix product, in float64, where small distances lose nothing to cancellation
        wide = standardised.double()
        return (wide * wide).sum(dim=1, keepdim=True) + self._unit_squares - 2 * wide @ self._wide_units.T

    def find_minor_axes(
        self, codes: Tensor, predicted: Tensor, classes: int, *, most: int | None = None, chunk: int = 2048
    ) -> None:
        """Learn the directions in which the codes of a class hardly vary: the lesser half of the principal axes.

        Natural images hardly move along them, attacks do: Hendrycks and Gimpel, "Early methods for detecting
        adversarial images" (2017), on pixels; here on codes, within the predicted class. Of a code that is wider than
        `most`, so many numbers are drawn, and the axes lie among them: what is learned is quadratic in their count,
        and its decomposition cubic.

        Args:
            codes: [N, D], possibly on disk.
            predicted: [N].
            classes: K.
            most: numbers of a code that are looked at; None: MOST_VARYING.
            chunk: rows at a time.
        """
        every = torch.randperm(codes.shape[1], generator=torch.Generator().manual_seed(0))
        drawn = every[: MOST_VARYING if most is None else most].sort().values
        width = len(drawn)
        sums = torch.zeros(classes, codes.shape[1], dtype=torch.float64)
        products = torch.zeros(width, width, dtype=torch.float64)
        for block, labels in zip(codes.split(chunk), predicted.split(chunk), strict=True):
            standardised = self.standardise(block).double()
            sums.index_add_(0, labels, standardised)
            some = standardised[:, drawn]
            products += some.T @ some
        counts = torch.bincount(predicted, minlength=classes).double()
        means = sums / counts.clamp_min(1).unsqueeze(1)  # a class never predicted: the overall mean, 0
        some_means = means[:, drawn]
        within = (products - (some_means * counts.unsqueeze(1)).T @ some_means) / counts.sum()
        variances, axes = torch.linalg.eigh(within)
        # Axes without any variance (numbers that never change, fewer codes than numbers) would make every rounding
        # error a wonder. Where the lesser half has no others, the lesser half of the others is learned.
        varied = (variances > LEAST_VARIANCE * variances[-1]).nonzero().flatten()
        kept = varied[varied < max(1, width // 2)]
        if not len(kept):
            kept = varied[: (len(varied) + 1) // 2]
        self.class_means = means.to(codes.dtype)
        scaled = (axes[:, kept] / variances[kept].sqrt()).to(codes.dtype)
        self.minor_axes = scaled.new_zeros(codes.shape[1], len(kept)).index_copy_(0, drawn, scaled)
        self.widen()

    def minor_distances(self, standardised: Tensor, predicted: Tensor) -> Tensor:
        """Mahalanobis distance to the predicted class's mean along the minor axes, [B, D], [B] -> [B]."""
        offset = (standardised - self.class_means.index_select(0, predicted)).double() @ self._wide_axes
        distance: Tensor = torch.linalg.vector_norm(offset, dim=1)
        return distance.to(standardised.dtype)

    def train_units(
        self,
        codes: Tensor,
        *,
        epochs: int,
        radius_end: float,
        seed: int,
        chunk: int = 2048,
        after_epoch: Callable[[], None] | None = None,
    ) -> None:
        """Batch SOM: w_u = sum_b n(u, bmu(b)) z_b / sum_b n(u, bmu(b)), a Gaussian neighbourhood n on the torus.

        Args:
            codes: [N, D], possibly on disk; revisited `epochs` times in chunks.
            epochs: passes; the neighbourhood radius shrinks geometrically over them, from side / 2.
            radius_end: the last radius, in units of the grid.
            seed: of the initial units, codes drawn without replacement.
            chunk: rows at a time.
            after_epoch: called after each, when the map can be asked.
        """
        chunks = codes.split(chunk)
        count, first = codes.shape[0], codes[0].double()
        total, squares = torch.zeros_like(first), torch.zeros_like(first)
        for block in chunks:  # shifted by the first code, so that the variance does not cancel
            shifted = block.double() - first
            total += shifted.sum(dim=0)
            squares += (shifted**2).sum(dim=0)
        mean = total / count
        deviation = (squares / count - mean**2).clamp_min(0).sqrt()
        self.mean = (mean + first).to(codes.dtype)
        # A number that never varies carries no distance; scale 1 keeps it from dividing by zero.
        self.scale = torch.where(deviation > 1e-6 * (1 + self.mean.abs()), deviation, 1.0).to(codes.dtype)

        generator = torch.Generator().manual_seed(seed)
        units = self.side * self.side
        start = torch.randperm(count, generator=generator)[:units]
        if count < units:
            start = torch.randint(count, (units,), generator=generator)
        self.units = self.standardise(codes[start])
        for epoch in range(epochs):
            progress = epoch / max(1, epochs - 1)
            radius = (self.side / 2) ** (1 - progress) * radius_end**progress
            sums, hits = torch.zeros_like(self.units), torch.zeros(units, dtype=codes.dtype)
            for block in chunks:
                block_sums, block_hits = self.batch_sums(self.standardise(block))
                sums += block_sums
                hits += block_hits
            self.move(sums, hits, radius)
            self.widen()
            if after_epoch is not None:
                after_epoch()

    def batch_sums(self, standardised: Tensor) -> tuple[Tensor, Tensor]:
        """What one epoch needs of standardised codes [B, D]: their sum per best matching unit [U, D], and hits [U].

        Both add up over blocks and over shards.
        """
        best = torch.cdist(standardised, self.units).argmin(dim=1)
        sums = torch.zeros_like(self.units).index_add_(0, best, standardised)
        return sums, torch.bincount(best, minlength=len(self.units)).to(sums.dtype)

    def move(self, sums: Tensor, hits: Tensor, radius: float) -> None:
        """End an epoch: w_u = sum_v n(u, v) sums_v / sum_v n(u, v) hits_v, n Gaussian in torus distance."""
        positions = grid_positions(self.side).to(sums)
        grid = torus_distance(positions[:, None], positions[None, :], self.side)
        neighbourhood = torch.exp(-(grid**2) / (2 * radius**2))
        weight = neighbourhood @ hits
        moved = (neighbourhood @ sums) / weight.clamp_min(1e-12).unsqueeze(1)
        # A unit out of everyone's reach stays where it is.
        self.units = torch.where((weight > 1e-12).unsqueeze(1), moved, self.units)

    def merge(self, other: TorusMap) -> None:
        """Add the hits another shard counted on the same units."""
        if not torch.equal(self.units, other.units):
            raise BundleError("these maps hold different units: train once, then count hits on every shard")
        self.hits = self.hits + other.hits

    def widen(self) -> None:
        """Derive units and axes in float64, and the squares of the units' lengths."""
        self._wide_units, self._wide_axes = self.units.double(), self.minor_axes.double()
        self._unit_squares = (self._wide_units**2).sum(dim=-1)

    def settle(self) -> None:
        """Work out what is derived; above all which units each class owns: those most of whose hits are its.

        A class that owns none owns where it hit most; one that was never predicted owns every unit, so that its
        class distance is 0, no evidence either way.
        """
        own = (self.hits == self.hits.amax(dim=1, keepdim=True)) & (self.hits > 0)
        most = self.hits == self.hits.amax(dim=0, keepdim=True)
        self.owned = torch.where(~own.any(dim=0), most, own)
        self.widen()

    def mean_center_distance(self) -> float:
        """Mean torus distance between the centres of the classes that were ever predicted; 0 if there is one only."""
        seen = torch.nonzero(self.hits.sum(dim=0)).flatten()
        pairs = torch.combinations(torch.arange(len(seen)))
        if not len(pairs):
            return 0.0
        centers = torch.stack([class_center(self.hits[:, k], self.side) for k in seen])
        return float(torus_distance(centers[pairs[:, 0]], centers[pairs[:, 1]], self.side).mean())

    def quality(self, standardised: Tensor) -> tuple[float, float]:
        """Quantization error (mean BMU distance) and topographic error of standardised codes [B, D].

        The topographic error is the share of codes whose two best units are not neighbours (eight of them, on the
        torus).
        """
        distances, order = self.distances(standardised).topk(2, dim=1, largest=False)
        positions = grid_positions(self.side).to(order.device)
        step = torus_offset(positions[order[:, 0]], positions[order[:, 1]], self.side).abs().amax(dim=1)
        return float(distances[:, 0].mean()), float((step > 1).double().mean())
