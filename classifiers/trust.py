"""Whose code a bundle may have run: the shipped classifiers', torchvision's, timm's, and whatever its user allows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from askance.classifiers.loading import EXAMPLES, build_classifier, load_strictly
from askance.classifiers.modules import copy_of
from askance.classifiers.zoos import TIMM, TORCHVISION
from askance.detectors.bundle import BuildClassifier
from askance.errors import ConfigError

# Not transformers: the arguments of its classifiers are a configuration, in which more than sizes is chosen: whose
# code computes attention, for one. A version to come may let it choose more.
TRUSTED_ZOOS = (TORCHVISION, TIMM)


def trusting(allowed: Collection[str]) -> BuildClassifier:
    """`build_classifier` for bundles: a bundle is data, and its manifest alone has nothing imported.

    Args:
        allowed: factories ("package.module:callable") that may be imported, too, or whole modules ("package.module").

    Returns:
        (factory, arguments, weights) -> the classifier in eval mode. It raises ConfigError, with nothing imported, for
        a factory that is not allowed; otherwise as `build_classifier`.
    """

    def build(factory: str | None, arguments: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
        if factory is not None and not is_trusted(factory, allowed):
            raise ConfigError(
                f"the bundle's classifier is built by {factory!r}, which a bundle alone may not have imported: if you "
                f"trust it, allow it (--allow-factory {factory}, or allowed_factories)"
            )
        return build_classifier(factory, arguments, weights)

    return build


def standing_in(classifier: nn.Module | None, allowed: Collection[str]) -> BuildClassifier:
    """What gives a bundle its classifier: a copy of a module at hand, with the bundle's weights; None: `trusting`."""
    if classifier is None:
        return trusting(allowed)

    def build(factory: str | None, _arguments: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
        own = copy_of(classifier)
        load_strictly(factory or type(own).__name__, own, weights)
        return own

    return build


def is_trusted(factory: str, allowed: Collection[str]) -> bool:
    """Whether a factory is shipped, torchvision's or timm's, or allowed by its whole name or its module's."""
    module, colon, _ = factory.partition(":")
    if not colon:
        return factory in EXAMPLES
    return module in TRUSTED_ZOOS or factory in allowed or module in allowed
