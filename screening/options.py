"""Options: a detector's parameters, as configs and manifests hold them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Base of the detectors' options: immutable, and an unknown key is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ExplainingOptions(Options, ABC):
    """Options that say of their detector what a Screen has to know (`screening.reading.Explainer`).

    So whoever has a graph's readings puts them in words without the detector's own code, which is torch's.
    """

    kind: ClassVar[str]
    """Of the detector."""

    @property
    @abstractmethod
    def layers(self) -> tuple[str, ...]:
        """The layers it reads."""

    @property
    def view_layers(self) -> tuple[str, ...]:
        """The layers it reads of views of the input; without any it asks for no views."""
        return ()

    @abstractmethod
    def explain_one(self, evidence: Mapping[str, Any]) -> dict[str, Any]:
        """Put one input's evidence (without the batch dimension) in a small JSON-ready dict for people."""
