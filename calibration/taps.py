"""Which layers to tap: a handful over the depth of a classifier, where its stages end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from askance.calibration.layers import Layer

FEWEST, MOST = 4, 6  # layers that are tapped: those of the papers' own networks are four and five
WIDEST = 8192  # numbers of a layer that introspection reads: its autoencoder has as many inputs


@dataclass(frozen=True)
class Taps:
    """The layers chosen, each in the order in which they run.

    Attributes:
        parts: ends of stages or blocks, the last linear layer among them.
        mapped: those of them that a map can be made of.
        hidden: what the last linear layer reads, where that is not too wide, and that layer.
    """

    parts: tuple[str, ...]
    mapped: tuple[str, ...]
    hidden: tuple[str, ...]


def taps_for(layers: Sequence[Layer]) -> Taps:
    """Choose from the layers of a classifier.

    Its own parts are taken, those with weights of their own that can be tapped; while they are fewer than FEWEST, the
    one with the most layers in it gives its place to its parts. Of more than MOST those nearest to evenly spaced depths
    are kept, the first and the last always.

    Args:
        layers: in the order in which they are done, as `layers_of` gives them.
    """
    usable = [one for one in layers if one.has_weights and not one.fault]
    parts = _within("", usable)
    while len(parts) < FEWEST:
        inner = {part.name: _within(f"{part.name}.", usable) for part in parts}
        opened = max(parts, key=lambda part: _count(part.name, layers) if inner[part.name] else 0, default=None)
        if opened is None or not inner[opened.name]:
            break
        parts = [one for one in parts if one is not opened] + inner[opened.name]
    parts.sort(key=layers.index)
    parts = _spread(parts)
    return Taps(
        tuple(one.name for one in parts),
        tuple(one.name for one in parts if one.form != "other"),
        _hidden(layers, parts),
    )


def _within(prefix: str, usable: Sequence[Layer]) -> list[Layer]:
    """The outermost of the usable layers whose names begin so."""
    inside = [one for one in usable if one.name.startswith(prefix)]
    return [one for one in inside if not any(one.name.startswith(f"{other.name}.") for other in inside)]


def _count(name: str, layers: Sequence[Layer]) -> int:
    return sum(one.name.startswith(f"{name}.") for one in layers)


def _spread(parts: list[Layer]) -> list[Layer]:
    if len(parts) <= MOST:
        return parts
    first, *middle, last = parts
    step = (last.depth - first.depth) / (MOST - 1)
    kept = []
    for i in range(1, MOST - 1):
        nearest = min(middle, key=lambda one: abs(one.depth - first.depth - i * step))
        middle.remove(nearest)
        kept.append(nearest)
    return [one for one in parts if one in (first, last) or one in kept]


def _hidden(layers: Sequence[Layer], parts: Sequence[Layer]) -> tuple[str, ...]:
    """The last layer before the last one with weights that introspection can read, and the last of the parts."""
    if not parts:
        return ()
    last = max(i for i, one in enumerate(layers) if one.has_weights and not one.fault and not _count(one.name, layers))
    before = [one for one in layers[:last] if not one.fault and 1 < one.width <= WIDEST]
    return tuple(dict.fromkeys([one.name for one in before[-1:]] + [parts[-1].name]))
