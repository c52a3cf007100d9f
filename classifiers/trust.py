"""Whose code a bundle may have run: the shipped classifiers' and torchvision's, and what its user allows by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn

from askance.classifiers.loading import EXAMPLES, TORCHVISION, build_classifier
from askance.errors import ConfigError


def trusting(allowed: Collection[str]) -> Callable[[str | None, Mapping[str, Any], Mapping[str, Tensor]], nn.Module]:
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


def is_trusted(factory: str, allowed: Collection[str]) -> bool:
    """Whether a factory is shipped, torchvision's, or allowed by its whole name or its module's."""
    module, colon, _ = factory.partition(":")
    if not colon:
        return factory in EXAMPLES
    return module == TORCHVISION or factory in allowed or module in allowed
