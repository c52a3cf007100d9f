"""A first config for a classifier: layers, splits, options and attacks chosen, and the reasons written beside them."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from askance.calibration.budgets import budget_for
from askance.calibration.layers import layers_of
from askance.calibration.proof import PROVED_IMAGES
from askance.calibration.sharing import Shares, TrainedOn, shared_out
from askance.calibration.sources import SOURCES
from askance.calibration.subject import Known
from askance.calibration.taps import Taps, taps_for
from askance.calibration.unlabelled import learned_from
from askance.errors import ConfigError, LayerError

ROWS = 500  # of each library; fewer where there are fewer than four times as many images
NEURONS = 2048  # of a layer that a library sees
SIDES = (4, 16)  # of a map, at least and at most
ATTACKED = 200


@dataclass(frozen=True)
class Draft:
    """A config to be.

    Attributes:
        text: of the TOML file.
        notes: what a person should know of how it was made, a line each.
    """

    text: str
    notes: tuple[str, ...]


def draft(known: Known, source: str, test_source: str | None, trained_on: TrainedOn | None, out: Path) -> Draft:
    """Choose everything that a config says.

    Args:
        known: the classifier and its images.
        source, test_source: where these come from, as they were named.
        trained_on: which of them the classifier has seen; None: nobody said.
        out: where the config goes: paths are written relative to its folder.

    Raises:
        ConfigError, DataError: nobody said, or there are too few images.
        LayerError: no layer can be tapped.
    """
    preprocessing, images = known.config.preprocessing, known.pools["train"]
    shares = shared_out({name: len(pool) for name, pool in known.pools.items()}, trained_on)
    taps = taps_for(layers_of(known.classifier, preprocessing, images[:PROVED_IMAGES].pixels()))
    if not taps.parts:
        raise LayerError("no layer with weights can be tapped: askance layers says why")
    budget, share = budget_for(known.classifier, preprocessing, known.pools.get("test", images))
    beside = out.absolute().parent
    learns_errors = shares.splits[learned_from(shares.splits)].partition("[")[0] not in known.unlabelled
    sections = [
        "# Written by askance init, to be changed: docs/calibration.md says what there is.\n"
        f"name = {_toml(_name(out))}\n"
        f"batch_size = {_batch_size(preprocessing.shape)}",
        _classifier(known, beside),
        _data(source, test_source, beside, images.classes),
        _splits(shares, two_pools="test" in known.pools, trained_on=trained_on),
        *_detectors(taps, shares, learns_errors=learns_errors),
        _levels(shares),
        _evaluation(budget, share, shares),
    ]
    notes = [
        f"normalisation: {known.scale}",
        f"layers: {', '.join(taps.parts)}",
        "splits: " + ", ".join(f"{name} {size}" for name, size in shares.sizes.items()),
        f"attacks: FGSM of {budget} succeeds on {share:.0%} of the images tried",
        *([f"warning: {shares.warning}"] if shares.warning else []),
    ]
    return Draft("\n\n".join(sections) + "\n", tuple(notes))


def _name(out: Path) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", out.stem).strip("-_.") or "classifier"


def _batch_size(shape: tuple[int, int, int]) -> int:
    """Images whose activations fit in memory: a deep network holds some 64 times its input at its widest."""
    return max(8, min(250, 2**18 // (shape[1] * shape[2])))


def _classifier(known: Known, beside: Path) -> str:
    config, preprocessing = known.config, known.config.preprocessing
    lines = ["[classifier]", f"factory = {_toml(config.factory)}"]
    if config.arguments:
        lines.append(f"arguments = {_toml(config.arguments)}")
    lines.append(f"weights = {_toml(_path(config.weights, beside))}")
    names = _toml(list(known.pools["train"].classes))
    if known.unlabelled == set(known.pools):
        lines.append(f"class_names = {names}  # in the order of the logits: the images have no labels")
    elif config.class_names is not None:
        lines.append(f"class_names = {names}  # in the order of the data's own")
    if config.output is not None:
        lines.append(f"output = {_toml(config.output)}")
    lines += [
        "",
        "[classifier.preprocessing]  # what it takes; everything outside works on pixels in [0, 1]",
        f"channels = {preprocessing.channels}",
        f"height = {preprocessing.height}",
        f"width = {preprocessing.width}",
        f"# {'as given' if known.scale == 'given' else f'{known.scale}; better what it was trained with'}",
        f"mean = {_toml(list(preprocessing.mean))}",
        f"std = {_toml(list(preprocessing.std))}",
        f'resize = "{preprocessing.resize}"  # image files of other sizes: "refuse" them, or scale them, "bilinear"',
    ]
    return "\n".join(lines)


def _data(source: str, test_source: str | None, beside: Path, classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
    lines = [
        f"[data]  # {len(classes)} classes: {' '.join(shown.split())}",
        f"source = {_toml(_source(source, beside))}",
    ]
    if test_source is not None:
        lines.append(f"test_source = {_toml(_source(test_source, beside))}")
    return "\n".join([*lines, "seed = 0  # each pool is shuffled once by it"])


def _splits(shares: Shares, *, two_pools: bool, trained_on: TrainedOn | None) -> str:
    why = {
        "fit": "the detectors learn from these; the classifier may have been trained on them",
        "held_out": "unseen by the classifier: its errors here are what the error estimator learns",
        "calibrate": "clean scores: p-values are ranks among them",
        "fuse": "the fused score's own",
        "evaluate": "only for the figures",
    }
    lines = ["[splits]  # slices of the shuffled pools"]
    if shares.warning:
        lines.append(f"# WARNING: {shares.warning}.")
    elif two_pools and trained_on in (None, "train"):
        lines.append("# The classifier is taken to have been trained on `train`, and on nothing of `test`.")
    else:
        lines.append("# The classifier is taken to have been trained on none of these images.")
    lines += [f'{name} = "{text}"  # {why[name]}' for name, text in shares.splits.items()]
    return "\n".join(lines)


def _detectors(taps: Taps, shares: Shares, *, learns_errors: bool) -> list[str]:
    fitted = shares.sizes["fit"]
    sections = []
    if len(taps.parts) > 1:
        sections.append(
            "[detectors.library_network]\n"
            "# Layers spread over the depth, at ends of stages; about so many reference points of each.\n"
            f"library_layers = {_toml(list(taps.parts))}\n"
            f"rows = {max(1, min(ROWS, fitted // 4))}  # the novelty thresholds are found by it\n"
            f"neighbors = 3\n"
            f"sampled_neurons = {NEURONS}  # of each layer, at most"
        )
    introspection = [
        "[detectors.introspection]",
        "# What the last layer reads, and what it gives.",
        f"hidden_layers = {_toml(list(taps.hidden))}",
    ]
    if not learns_errors:
        introspection = [f"# {line.removeprefix('# ')}" for line in introspection]
        introspection.insert(0, "# Left out: it learns the classifier's errors, for which labels are needed.")
    sections.append("\n".join(introspection))
    if taps.mapped:
        side = max(SIDES[0], min(SIDES[1], math.isqrt(fitted // 4)))
        sections.append(
            "[detectors.self_organizing_map]\n"
            f"map_layers = {_toml(list(taps.mapped))}\n"
            f"side = {side}  # {side * side} units: four images or more for each"
        )
        sections.append(
            "[detectors.constellation]\n"
            "# Looks at altered views of each image: a forward pass for each, and often most of what is caught\n"
            "# (docs/results/matrix.md). A server does without them on --single-pass.\n"
            f"displacement_layers = {_toml(list(taps.mapped[:2]))}"
        )
    return sections


def _levels(shares: Shares) -> str:
    adversarial = shares.levels["adversarial"]
    why = "" if adversarial == 0.01 else "  # 1% needs 99 images in calibrate and fuse"
    return (
        "[levels]  # shares of clean images that may be flagged\n"
        f"suspect = {shares.levels['suspect']:g}\nadversarial = {adversarial:g}{why}"
    )


def _evaluation(budget: str, share: float, shares: Shares) -> str:
    step = f"{budget.partition('/')[0]}/{4 * 255}"  # a quarter of the budget
    lines = [
        "[evaluation]",
        f"attacked_images = {min(ATTACKED, shares.sizes['evaluate'])}  # that each attack starts from",
        f"# FGSM of {budget} succeeds on {share:.0%} of the images tried.",
    ]
    if share > 0:
        lines.append("ladder = true  # the fused score learns from attacks of every length, whose budgets it finds")
    lines += [
        "attacks = [",
        f'    {{ name = "fgsm", kind = "fgsm", epsilon = "{budget}" }},',
        f'    {{ name = "pgd", kind = "pgd", epsilon = "{budget}", steps = 20, step_size = "{step}" }},',
        "]",
    ]
    return "\n".join(lines)


def _path(path: Path, beside: Path) -> str:
    """As a config in `beside` names it: relative to that, where it is there from here; else as it was."""
    if path.is_absolute() or not path.exists():
        return path.as_posix()
    return Path(os.path.relpath(path.absolute(), beside)).as_posix()


def _source(source: str, beside: Path) -> str:
    kind, _, what = source.partition(":")
    return f"{kind}:{_path(Path(what), beside)}" if SOURCES[kind].is_path else source


def _toml(value: Any) -> str:
    """A value as TOML spells it.

    Raises:
        ConfigError: TOML has no such value.
    """
    if isinstance(value, Mapping):
        names = (key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False) for key in value)
        inside = ", ".join(f"{name} = {_toml(one)}" for name, one in zip(names, value.values(), strict=True))
        return f"{{ {inside} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if value is None:
        raise ConfigError("an argument is null, which no config can say: leave it out")
    return json.dumps(value, ensure_ascii=False)
