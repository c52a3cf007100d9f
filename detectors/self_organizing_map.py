"""Self-organizing map: how far an input's code lies from its best matching unit on a toroidal map of clean codes.

Source: J. H. Lee and S. Vijayan, "Generalization ability and vulnerabilities to adversarial perturbations: two sides
of the same coin"; the map itself is in torus_map.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from askance.detectors.detector import ExplainedByOptions, Inputs
from askance.detectors.ranks import around, harmonic_mean, p_value, yardstick
from askance.detectors.spool import spool
from askance.detectors.tap import EMPTY_STREAM, Capture, CaptureStream
from askance.detectors.torus_map import TorusMap, lengths
from askance.errors import DataError, LayerError
from askance.screening.kinds.self_organizing_map import SelfOrganizingMapOptions
from askance.screening.options import Options
from askance.screening.reading import Reading, Rows

FEWEST_UNITS = 2  # in use: a map of no more tells nothing from anything
EPSILON = 1e-6  # added to every mass, so that a silent channel's centre of mass is the centre of the map


def vector_code(activation: Tensor) -> Tensor:
    """Vector code of a layer: per channel its max, mean, standard deviation and centre of mass (row, column).

    The mass is |a| plus a small epsilon; the centre is in units of the map's half-size, in [-1, 1]. A layer that is
    of vectors is its own code.

    Args:
        activation: [B, C, H, W] -> [B, 5C]; [B, D] -> [B, D].

    Raises:
        LayerError: another shape, such as a transformer's tokens, [B, T, D].
    """
    if activation.ndim == 2:
        return activation
    if activation.ndim != 4:
        raise LayerError(f"a map takes [B, C, H, W] or [B, D], got {_shape(activation)}: tap another layer")
    numbers = activation.flatten(2)
    mean = numbers.mean(dim=2)
    off = numbers - mean.unsqueeze(2)
    # one product gives all three sums over the mass
    places = _places(activation)
    sums = numbers.abs() @ places + EPSILON * places.sum(dim=0, dtype=torch.float64).to(places.dtype)
    total, row, column = sums.unbind(dim=2)
    # not torch.std, nor a power: either takes several times as long
    return torch.cat([numbers.amax(dim=2), mean, (off * off).mean(dim=2).sqrt(), row / total, column / total], dim=1)


def _places(activation: Tensor) -> Tensor:
    """One, row and column of every place of a map, [H * W, 3]; the latter in units of the map's half-size."""

    def axis(count: int) -> Tensor:
        return torch.linspace(-1, 1, count, dtype=activation.dtype, device=activation.device)

    height, width = activation.shape[2:]
    row, column = axis(height).repeat_interleave(width), axis(width).repeat(height)
    return torch.stack([torch.ones_like(row), row, column], dim=1)


def layer_code(capture: Capture, layer: str) -> Tensor:
    """The vector code of a layer of a Capture.

    Raises:
        LayerError: it gives what no map takes; the message names it.
    """
    try:
        return vector_code(capture.activations[layer])
    except LayerError as error:
        raise LayerError(f"layer {layer!r}: {error}") from None


def channels_last(activation: Tensor, shape: tuple[int, int, int]) -> bool:
    """Whether [B, a, b, c] must be [B, H, W, C]: a and b stand to one another as an input's sides, b and c do not.

    Args:
        activation: of a layer.
        shape: (C, H, W) of an input.
    """
    _, height, width = shape

    def alike(rows: int, columns: int) -> bool:  # strides and paddings move a side by less than one
        return abs(rows - columns * height / width) <= 1 or abs(columns - rows * width / height) <= 1

    _, first, second, third = activation.shape
    return alike(first, second) and not alike(second, third)


def _shape(activation: Tensor) -> str:
    return f"[B, {', '.join(map(str, activation.shape[1:]))}]"


class SelfOrganizingMap(ExplainedByOptions[SelfOrganizingMapOptions]):
    """Suspicion by distance from the map of clean codes; layers are put on one scale by their clean distances.

    Score: -log of the harmonic mean over layers of p_l, the rank of the BMU distance among the layer's clean ones.
    Components: `bmu_distance:<layer>`; `class_distance:<layer>`, the distance to the nearest unit that the predicted
    class owns (most of whose hits are its) minus the BMU distance; and `minor_distance:<layer>`, the distance to the
    predicted class's mean code along the directions in which the codes of a class hardly vary.
    """

    kind: ClassVar[str] = SelfOrganizingMapOptions.kind
    options_class: ClassVar[type[Options]] = SelfOrganizingMapOptions

    def __init__(self, options: SelfOrganizingMapOptions) -> None:
        super().__init__(options)
        self.maps = nn.ModuleList(TorusMap(options.side) for _ in options.map_layers)

    @property
    def is_fitted(self) -> bool:
        """Whether every map is trained."""
        return all(layer_map.yardstick.numel() > 0 for layer_map in self.layer_maps().values())

    def layer_maps(self) -> dict[str, TorusMap]:
        """The map of each layer."""
        return {
            layer: layer_map
            for layer, layer_map in zip(self.layers, self.maps, strict=True)
            if isinstance(layer_map, TorusMap)
        }

    def check(self, capture: Capture, inputs: Inputs) -> None:
        """Refuse a layer that gives neither feature maps nor vectors.

        Raises:
            LayerError: one does.
        """
        for layer in self.layers:
            layer_code(capture, layer)
            activation = capture.activations[layer]
            if activation.ndim == 4 and channels_last(activation, inputs.shape):
                raise LayerError(
                    f"layer {layer!r}: a map takes [B, C, H, W] or [B, D], got {_shape(activation)}, channels last: "
                    "tap another layer"
                )

    @torch.no_grad()
    def fit(self, clean: CaptureStream, held_out: CaptureStream | None = None) -> Self:  # noqa: ARG002
        """Train one map per layer on the stream's vector codes, kept on disk between epochs: one walk.

        Raises:
            DataError: the stream is empty.
            LayerError: a layer's code never varies, or it has none.
        """

        def code_of(layer: str) -> Any:
            return lambda capture: layer_code(capture, layer)

        *codes, classes = spool(
            clean,
            *(code_of(layer) for layer in self.layers),
            lambda capture: torch.stack(
                [capture.predicted, torch.full_like(capture.predicted, capture.logits.shape[1])], dim=1
            ),
        )
        predicted, count = classes[:, 0], int(classes[0, 1])
        for (layer, layer_map), layer_codes in zip(self.layer_maps().items(), codes, strict=True):
            if bool((layer_codes == layer_codes[0]).all()):
                raise LayerError(f"layer {layer!r} is the same for every input: it never fires; tap another layer")
            layer_map.train_units(
                layer_codes,
                epochs=self.options.epochs,
                radius_end=self.options.radius_end,
                seed=self.options.seed,
            )
            distances, owners = [], torch.zeros(self.options.side**2, count, dtype=torch.long)
            for block, labels in zip(layer_codes.split(2048), predicted.split(2048), strict=True):
                nearest = layer_map.distances(layer_map.standardise(block)).min(dim=1)
                distances.append(nearest.values)
                owners.index_put_((nearest.indices, labels), torch.ones_like(labels), accumulate=True)
            layer_map.hits = owners
            layer_map.find_minor_axes(layer_codes, predicted, count)
            layer_map.yardstick = yardstick(torch.cat(distances))
        self.prepare()
        return self

    def merge(self, other: SelfOrganizingMap) -> Self:
        """Add the hits that `other` counted over another shard on the same units."""
        for mine, theirs in zip(self.layer_maps().values(), other.layer_maps().values(), strict=True):
            mine.merge(theirs)
        self.prepare()
        return self

    def prepare(self) -> None:
        """Work out what each map derives."""
        for layer_map in self.layer_maps().values():
            layer_map.settle()

    def read(self, capture: Capture) -> Reading[Tensor]:
        """Distances to the best matching unit and to the predicted class's own units, per layer."""
        self.require_fitted()
        maps, predicted = self.layer_maps(), capture.predicted
        codes = [layer_map.standardise(layer_code(capture, layer)) for layer, layer_map in maps.items()]
        both = list(zip(maps.values(), codes, strict=True))
        minor = torch.stack([layer_map.minor_distances(code, predicted) for layer_map, code in both])
        # what follows costs as much for one layer as for all, [L, B] of each
        distances = lengths(torch.stack([layer_map.squares(code) for layer_map, code in both])).to(minor.dtype)
        nearest, units = distances.min(dim=2)
        owned = torch.stack([layer_map.owned.T.index_select(0, predicted) for layer_map in maps.values()])
        other = distances.masked_fill(~owned, torch.inf).amin(dim=2) - nearest
        names = [f"{name}:{layer}" for layer in maps for name in ("bmu_distance", "class_distance", "minor_distance")]
        components = Rows(names, torch.stack([nearest, other, minor], dim=1).flatten(0, 1))
        yardsticks = torch.stack([layer_map.yardstick for layer_map in maps.values()])
        ranks = p_value(torch.stack([nearest, *around(nearest, yardsticks)]), yardsticks)
        score, low, high = harmonic_mean(-ranks.log()).to(nearest.dtype)
        evidence = {"unit": units.T, "distance": nearest.T, "p": ranks[0].T}
        return Reading(score, components, evidence=evidence, slack=torch.maximum(high - score, score - low))

    @torch.no_grad()
    def diagnose(self, clean: CaptureStream, held_out: CaptureStream) -> dict[str, Any]:  # noqa: ARG002
        """Per layer: quantization and topographic error, units in use, mean torus distance between class centres."""
        self.require_fitted()
        codes: dict[str, list[Tensor]] = {layer: [] for layer in self.layers}
        for capture in held_out:
            for layer, parts in codes.items():
                parts.append(layer_code(capture, layer))
        result = {}
        for layer, layer_map in self.layer_maps().items():
            if not codes[layer]:
                raise DataError(EMPTY_STREAM)
            quantization, topographic = layer_map.quality(layer_map.standardise(torch.cat(codes[layer])))
            result[layer] = {
                "quantization_error": quantization,
                "topographic_error": topographic,
                "units_used": float((layer_map.hits.sum(dim=1) > 0).double().mean()),
                "mean_center_distance": layer_map.mean_center_distance(),
            }
        return {"layers": result}

    def doubts(self, figures: Mapping[str, Any], classes: int) -> dict[str, str]:  # noqa: ARG002
        """Layers all of whose codes fall on the same few units."""
        units = {
            layer: round(of_layer["units_used"] * self.options.side**2)
            for layer, of_layer in figures.get("layers", {}).items()
        }
        return {
            layer: f"all images fall on {count} of the map's {self.options.side**2} units"
            for layer, count in units.items()
            if count <= FEWEST_UNITS
        }
