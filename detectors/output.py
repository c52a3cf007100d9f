"""Output: which part of a classifier's answer are its logits, where it answers with more than one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from askance.errors import ConfigError, did_you_mean
from askance.screening.output import checked


class _Selection:
    """A forward hook that puts one part of a module's answer in the answer's place."""

    def __init__(self, output: str | int) -> None:
        self.output = output

    def __call__(self, _module: nn.Module, _inputs: Any, answer: Any) -> Any:
        if isinstance(answer, Tensor):
            raise ConfigError(
                f"output is {self.output!r}, but the classifier returns a tensor already: leave output out"
            )
        parts = parts_of(answer)
        if isinstance(self.output, int) and isinstance(answer, Mapping) and self.output not in parts:
            parts = dict(enumerate(parts.values()))
        if self.output not in parts:
            raise ConfigError(
                f"the classifier's {type(answer).__name__} has no {self.output!r} for output: "
                f"{did_you_mean(str(self.output), map(str, parts))}"
            )
        return parts[self.output]


def select_output(classifier: nn.Module, output: str | int | None) -> nn.Module:
    """Make a classifier return one part of its answer; its layers and weights keep their names.

    Args:
        classifier: gets a forward hook, one in all; the last `output` counts.
        output: a key, an attribute or an index of what it returns; None leaves it as it is.

    Returns:
        The same classifier.

    Raises:
        ConfigError: `output` is neither a name nor an index; later, when it is asked: its answer has no such part.
    """
    if output is None:
        return classifier
    try:
        wanted = checked(output)
    except ValueError as error:
        raise ConfigError(f"output: {error}, got {output!r}") from None
    for hook in classifier._forward_hooks.values():
        if isinstance(hook, _Selection):
            hook.output = wanted
            return classifier
    classifier.register_forward_hook(_Selection(wanted))
    return classifier


def parts_of(answer: Any) -> dict[Any, Any]:
    """What a classifier's answer is made of, by key, attribute or index."""
    if isinstance(answer, Mapping):
        return dict(answer)
    if isinstance(answer, (tuple, list)):
        return dict(enumerate(answer)) | {name: getattr(answer, name) for name in getattr(answer, "_fields", ())}
    if is_dataclass(answer):
        return {field.name: getattr(answer, field.name) for field in fields(answer)}
    return {name: value for name, value in getattr(answer, "__dict__", {}).items() if not name.startswith("_")}
