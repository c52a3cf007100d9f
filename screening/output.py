"""Output: how a bundle names the part of a classifier's answer that holds the logits (`detectors.output` takes it)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator


def checked(value: Any) -> Any:
    """Raise ValueError unless it can name a part."""
    is_name = isinstance(value, str) and value != ""
    is_index = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not is_name and not is_index:
        raise ValueError('expected a key, an attribute or an index of what the classifier returns, "logits" or 0')
    return value


Output = Annotated[str | int, BeforeValidator(checked)]
"""A key, an attribute or an index (from 0) of what a classifier returns."""
