"""Calibration from live objects: a module and data sets as they are at hand, no config and no files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from askance.calibration.attacks import Attack
from askance.calibration.config import EvaluationConfig, Settings
from askance.calibration.data import named
from askance.calibration.explain import explain
from askance.calibration.images import Images
from askance.calibration.inputs import CalibrationInputs, checked
from askance.calibration.live_data import LiveImages, splits_of
from askance.calibration.pipeline import calibrate_inputs, evaluate_inputs
from askance.calibration.unlabelled import settled, with_labels
from askance.classifiers import build_classifier
from askance.classifiers.modules import copy_of
from askance.classifiers.shared_state import ordinary
from askance.classifiers.trust import standing_in
from askance.detectors import Bundle, Options
from askance.detectors.output import select_output
from askance.detectors.publishing import refuse_existing
from askance.errors import AskanceError, ConfigError, did_you_mean, one_line
from askance.evaluation import Evaluation
from askance.judgement import Levels
from askance.screening.class_names import names_of
from askance.screening.preprocessing import Preprocessing

Data = LiveImages | Mapping[str, LiveImages]
"""By split (fit, calibrate, fuse, evaluate, and held_out if there is one), disjoint; or one set to be shared out."""
TRIED_IMAGES = 8  # on which a factory must build what it stands for


@ordinary()
def calibrate(
    classifier: nn.Module,
    data: Data,
    *,
    out: str | PathLike[str],
    detectors: Mapping[str, Options | Mapping[str, Any]],
    attacks: Sequence[Attack | Mapping[str, Any]],
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str] | None = None,
    name: str | None = None,
    factory: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    output: str | int | None = None,
    word_vectors: Mapping[str, Any] | None = None,
    levels: Levels | Mapping[str, float] | None = None,
    batch_size: int = 500,
    seed: int = 0,
    resume: bool = False,
    **evaluation: Any,
) -> Bundle:
    """Fit detectors to a live classifier, calibrate, attack, evaluate, and publish a bundle.

    Args:
        classifier: maps normalised images [B, C, H, W] to logits [B, K], or see `output`; left as it is.
        data: images that the classifier takes, before normalisation: by split, or one set that it was not trained on.
            Where they have no labels its predictions stand in, introspection is left out unless `held_out` has some,
            and accuracy and the success of attacks are by the predictions.
        out: where the bundle goes; must not exist.
        detectors: their options by kind, as a config's sections hold them.
        attacks: on the evaluation split, as a config's rows or as objects.
        mean: of the normalisation in front of the classifier, for each channel, in pixels in [0, 1].
        std: of the same.
        class_names: in the order of the logits; None takes the data set's own, and without labels 0, 1, ...
        name: of the bundle's classifier; None takes its class's.
        factory: what builds the classifier elsewhere, "package.module:callable"; a server needs one, and so does
            opening the bundle without the module at hand. None tries the module's own class without arguments.
        arguments: of the factory.
        output: the key, attribute or index of what the classifier returns that holds the logits; None where it returns
            the logits and nothing else.
        word_vectors: {"file": PATH, "words": {class name: word}}, for detectors and attacks that want them.
        levels: the false-positive targets.
        batch_size: images per forward pass.
        seed: of the shuffling, where `data` is one set.
        resume: continue an interrupted calibration.
        evaluation: more of a config's [evaluation]: attacked_images, ladder, seen, baselines, controls,
            out_of_distribution.

    Returns:
        The published bundle.

    Raises:
        AskanceError: the classifier, the data or the options cannot be used, or `out` exists.
    """
    _refuse_unknown(evaluation, calibrate)
    path = Path(out)
    refuse_existing(path)
    own = copy_of(classifier)
    names = None if class_names is None else named(names_of(class_names), ())
    splits = splits_of(data, names, seed)
    preprocessing = _preprocessing(splits["fit"], mean, std)
    settings = _settings(
        {
            "name": type(own).__name__ if name is None else name,
            "detectors": _plain(detectors),
            "word_vectors": word_vectors,
            "levels": {} if levels is None else levels,
            "batch_size": batch_size,
            "evaluation": evaluation | {"attacks": [_row(one) for one in attacks]},
        }
    )
    select_output(own, output)
    settings, splits = settled(settings, own, preprocessing, splits, names)
    inputs = checked(_inputs(settings, own, _weights(own), splits, preprocessing, output))
    found = _factory(inputs, factory, dict(arguments or {}), type(own))
    return calibrate_inputs(replace(inputs, factory=found, arguments=dict(arguments or {})), path, resume=resume)


@ordinary()
def evaluate(
    bundle: str | PathLike[str] | Bundle,
    data: Data,
    *,
    attacks: Sequence[Attack | Mapping[str, Any]],
    classifier: nn.Module | None = None,
    allowed_factories: Collection[str] = (),
    require_signature: str | PathLike[str] | None = None,
    batch_size: int = 500,
    seed: int = 0,
    **evaluation: Any,
) -> Evaluation:
    """The figures of a published bundle again, on other data or attacks.

    All that is ours comes from the bundle; the baselines are fitted anew on the data's splits.

    Args:
        bundle: its folder, or opened.
        data: as for `calibrate`; the same set with the same seed is shared out as then.
        attacks: on the evaluation split.
        classifier: a module to use in place of one built by the bundle's factory; it takes the bundle's weights.
        allowed_factories: what builds the bundle's classifier and may be imported for that, as for `askance.open`.
        require_signature: a keyring, as for `askance.open`; a bundle that is open already has been asked.
        batch_size: images per forward pass.
        seed: of the shuffling, where `data` is one set.
        evaluation: more of a config's [evaluation].

    Raises:
        AskanceError: the bundle, the data or the attacks cannot be used.
    """
    _refuse_unknown(evaluation, evaluate)
    keyring = None if require_signature is None else Path(require_signature)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle), require_signature=keyring)
    entry = opened.manifest.classifier
    weights = opened.tensors(entry)
    module = standing_in(classifier, allowed_factories)(entry.factory, entry.arguments, weights)
    settings = _settings(
        {
            "name": entry.name,
            "detectors": {detector.kind: detector.options for detector in opened.manifest.detectors},
            "levels": opened.manifest.calibration.levels,
            "batch_size": batch_size,
            "evaluation": evaluation | {"attacks": [_row(one) for one in attacks]},
        }
    )
    select_output(module, entry.output)
    splits = with_labels(module, entry.preprocessing, splits_of(data, entry.class_names, seed), entry.class_names)
    inputs = _inputs(settings, module, weights, splits, entry.preprocessing, entry.output)
    factory = entry.factory if classifier is None else None
    return evaluate_inputs(opened, checked(replace(inputs, factory=factory, arguments=entry.arguments)))


def _refuse_unknown(evaluation: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """Raise ConfigError for a keyword that is neither the function's nor the evaluation's."""
    of_evaluation = [name for name in EvaluationConfig.model_fields if name != "attacks"]
    known = [*(name for name in signature(function).parameters if name != "evaluation"), *of_evaluation]
    for name in evaluation:
        if name not in of_evaluation:
            raise ConfigError(f"unknown argument {name!r}: {did_you_mean(name, known)}")


def _inputs(
    settings: Settings,
    classifier: nn.Module,
    weights: Mapping[str, Tensor],
    splits: Mapping[str, Images],
    preprocessing: Preprocessing,
    output: str | int | None,
) -> CalibrationInputs:
    return CalibrationInputs(
        settings,
        classifier,
        None,
        {},
        preprocessing,
        weights,
        splits,
        splits["fit"].classes,
        None,
        {"data": {"sources": "live"}, "config": settings.model_dump(mode="json")},
        output,
    )


def _weights(classifier: nn.Module) -> dict[str, Tensor]:
    """Copies of its state dict's tensors."""
    try:
        return {name: tensor.detach().clone() for name, tensor in classifier.state_dict().items()}
    except Exception as error:  # a lazy layer without values, an extra state that is no tensor
        raise ConfigError(
            f"the classifier's state_dict() cannot be kept ({one_line(error)}): expected tensors, with values"
        ) from error


def _settings(content: Mapping[str, Any]) -> Settings:
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        raise ConfigError(explain(error, Settings)) from None


def _plain(detectors: Mapping[str, Options | Mapping[str, Any]]) -> dict[str, Any]:
    return {
        kind: options.model_dump() if isinstance(options, Options) else options for kind, options in detectors.items()
    }


def _row(attack: Attack | Mapping[str, Any]) -> Mapping[str, Any]:
    return attack.model_dump() if isinstance(attack, Attack) else attack


def _preprocessing(images: Images, mean: Sequence[float], std: Sequence[float]) -> Preprocessing:
    channels, height, width = images.x.shape[1:]
    try:
        return Preprocessing.model_validate(
            {"channels": channels, "height": height, "width": width, "mean": tuple(mean), "std": tuple(std)}
        )
    except ValidationError as error:
        raise ConfigError(explain(error, Preprocessing)) from None


def _factory(
    inputs: CalibrationInputs, factory: str | None, arguments: Mapping[str, Any], own: type[nn.Module]
) -> str | None:
    """What builds the classifier elsewhere: the factory given, proved; else its own class, if that does."""
    wanted = f"{own.__module__}:{own.__qualname__}" if factory is None else factory
    importable = not own.__module__.startswith("__main__") and "<" not in own.__qualname__
    if factory is None and (arguments or not importable):
        return None
    try:
        built = select_output(build_classifier(wanted, arguments, inputs.weights), inputs.output)
        same = _answers_alike(built, inputs)
    except AskanceError:
        if factory is None:
            return None
        raise
    except Exception as error:
        if factory is None:
            return None
        raise ConfigError(
            f"the factory {factory!r} builds a classifier that cannot take the images: {one_line(error)}"
        ) from error
    if not same and factory is not None:
        raise ConfigError(
            f"the factory {factory!r} builds another classifier: with the same weights it answers otherwise"
        )
    return wanted if same else None


@torch.no_grad()
def _answers_alike(built: nn.Module, inputs: CalibrationInputs) -> bool:
    images = inputs.preprocessing.normalize(inputs.splits["fit"][:TRIED_IMAGES].pixels())
    return torch.allclose(built(images), inputs.classifier(images), rtol=1e-3, atol=1e-4)
