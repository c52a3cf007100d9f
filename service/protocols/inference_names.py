"""Names: what existing clients call the tensors of the protocol, beside what we call them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from askance.errors import ConfigError, did_you_mean


class TensorNames:
    """The inputs, or the outputs: each has a name of ours, and may have another that clients know it by.

    Args:
        setting: that gives the others, for errors.
        others: {another name: ours}, in the order that clients want them.
        own: all names of ours.

    Raises:
        ConfigError: there is no such name of ours, it has two others, or another one is that of something else.
    """

    def __init__(self, setting: str, others: Mapping[str, str], own: Sequence[str]) -> None:
        self._own = dict(others)
        self._shown = {ours: other for other, ours in others.items()}
        for other, ours in others.items():
            if ours not in own:
                raise ConfigError(f"{setting}: there is no {ours!r} to be called {other!r}: {did_you_mean(ours, own)}")
            if other in own and other != ours:
                raise ConfigError(f"{setting}: {ours!r} cannot be called {other!r}: that is another one's own name")
            if self._shown[ours] != other:
                raise ConfigError(f"{setting}: {ours!r} has two other names, {other!r} and {self._shown[ours]!r}")

    def own(self, name: str) -> str:
        """What we call what a client calls `name`."""
        return self._own.get(name, name)

    def shown(self, own: str) -> str:
        """What it is called where the client has not named it."""
        return self._shown.get(own, own)

    def in_order(self, own: Iterable[str]) -> list[str]:
        """Names of ours, those that have another first: a client may read its outputs by their place."""
        names = list(own)
        return [*(name for name in self._shown if name in names), *(name for name in names if name not in self._shown)]
