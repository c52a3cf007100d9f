"""Images without labels: the classes that the classifier predicts stand in for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn

from askance.calibration.config import Settings
from askance.calibration.images import Images, require_shape
from askance.calibration.progress import say
from askance.calibration.proof import PROVED_IMAGES, prove
from askance.errors import ConfigError
from askance.screening.class_names import names_of
from askance.screening.preprocessing import Preprocessing

AnySettings = TypeVar("AnySettings", bound=Settings)
BATCH = 100  # images at a time
LEARNS_FROM_LABELS = "introspection"  # what learns the classifier's errors, of which predictions have none


@torch.no_grad()
def with_predictions(
    classifier: nn.Module, preprocessing: Preprocessing, images: Mapping[str, Images], class_names: Sequence[str] | None
) -> dict[str, Images]:
    """Images by name, those without labels labelled by the classifier's predictions.

    Args:
        classifier: in eval mode; proved.
        preprocessing: in front of it.
        images: some of them labelled, maybe.
        class_names: in the order of the logits; None: those of what is labelled, else the numbers from 0 on.
    """
    predicted = {
        name: torch.cat([classifier(preprocessing.normalize(batch.pixels())) for batch in some.batches(BATCH)])
        for name, some in images.items()
        if not some.labelled
    }
    if not predicted:
        return dict(images)
    outputs = next(iter(predicted.values())).shape[1]
    own = next((some.classes for some in images.values() if some.labelled), None)
    names = tuple(class_names or own or names_of(range(outputs)))
    say(f"no labels in {', '.join(predicted)}: the classifier's predictions stand in for them")
    if class_names is None and own is None:
        say(f"no class names: the classes are called 0 to {outputs - 1}; class_names names them")
    return {
        name: Images(some.x, predicted[name].argmax(dim=1), names) if name in predicted else some
        for name, some in images.items()
    }


def with_labels(
    classifier: nn.Module, preprocessing: Preprocessing, splits: Mapping[str, Images], class_names: Sequence[str] | None
) -> dict[str, Images]:
    """The same as `with_predictions`, where the classifier is yet to be proved.

    Raises:
        ConfigError, DataError: it is refused.
    """
    unlabelled = next((images for images in splits.values() if not images.labelled), None)
    if unlabelled is not None:
        require_shape(unlabelled, preprocessing)
        prove(classifier, preprocessing, unlabelled[:PROVED_IMAGES].pixels(), gradients=False)
    return with_predictions(classifier, preprocessing, splits, class_names)


def settled(
    settings: AnySettings,
    classifier: nn.Module,
    preprocessing: Preprocessing,
    splits: Mapping[str, Images],
    class_names: Sequence[str] | None,
) -> tuple[AnySettings, dict[str, Images]]:
    """Settings and splits, once nothing in them wants labels that there are not.

    Splits without labels get predictions. Introspection, which learns the classifier's errors, is left out where the
    images that it would learn them from (`held_out`, else `fit`) have none; lines say so.

    Raises:
        ConfigError, DataError: the classifier is refused, or introspection was the only detector.
    """
    found = with_labels(classifier, preprocessing, splits, class_names)
    wanted = settings.detectors.wanted()
    if LEARNS_FROM_LABELS in wanted and not splits[learned_from(splits)].labelled:
        if len(wanted) == 1:
            raise ConfigError(
                f"{LEARNS_FROM_LABELS} learns from labels, and there are none: give a labelled held_out, or another "
                "detector"
            )
        say(f"{LEARNS_FROM_LABELS} is left out: it learns from labels; a labelled held_out would do")
        kept = settings.detectors.model_copy(update={LEARNS_FROM_LABELS: None})
        settings = settings.model_copy(update={"detectors": kept})
    return settings, found


def learned_from(splits: Collection[str]) -> str:
    """The split that the error estimator learns from."""
    return "held_out" if "held_out" in splits else "fit"
