"""Validation: all that is wrong with a config, its data and its classifier, found in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from askance.calibration.config import Config, placed, read_config, resolved
from askance.calibration.data import load_pools, named, require_classes, sliced, split_faults
from askance.calibration.explain import explain_all
from askance.calibration.images import Images, any_image
from askance.calibration.inputs import (
    LEVELLED,
    CalibrationInputs,
    check_accuracy,
    check_classifier,
    check_levels,
    load_classifier,
    word_vectors,
)
from askance.calibration.sources import load_source
from askance.calibration.unlabelled import settled
from askance.detectors import DETECTORS, Tap, tap_for
from askance.errors import AskanceError, ConfigError, printable

T = TypeVar("T")
TRIED_IMAGES = 2  # under each layer, as when a calibration begins


def mistakes_in(path: Path) -> list[str]:
    """All that speaks against calibrating by a config, a line each with its path; what depends on something mistaken is
    not tried.

    Args:
        path: of the config.
    """
    try:
        return [f"{path}: {mistake}" for mistake in _Validation(read_config(path), path.parent).mistakes]
    except ConfigError as error:
        return [str(error)]


class _Validation:
    """The config's parts, each tried as far as the parts that it depends on are right."""

    def __init__(self, content: dict[str, Any], beside: Path) -> None:
        self.mistakes: list[str] = []
        self._beside = beside
        config: Config | None = None
        try:
            config = Config.model_validate(content)
        except ValidationError as error:
            self.mistakes += explain_all(error, Config)
        sections = {name: self._section(name, content) for name in ("classifier", "data", "splits", "evaluation")}
        self._try_foreign(sections["evaluation"], sections["classifier"])
        classifier = self._classifier(sections["classifier"])
        splits = self._splits(sections["data"], sections["splits"], sections["classifier"])
        if config is not None and classifier is not None and splits is not None:
            self._try_together(resolved(config, beside), classifier, splits)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """A block that an error ends, and nothing else; a mistake that is known already is not told again."""
        try:
            yield
        except AskanceError as error:
            if str(error) not in self.mistakes:
                self.mistakes.append(str(error))

    def _tried(self, make: Callable[[], T]) -> T | None:
        """What `make` gives; None where it raises an error, which is noted."""
        found: list[T] = []
        with self._noted():
            found.append(make())
        return found[0] if found else None

    def _section(self, name: str, content: dict[str, Any]) -> Any:
        """A section with its paths resolved; None where it is missing or mistaken, which is told already."""
        if name not in content:
            return None
        try:
            kind: Any = Config.model_fields[name].annotation
            section = TypeAdapter(kind).validate_python(content[name])
        except ValidationError:
            return None
        return placed(section, self._beside)

    def _classifier(self, section: Any) -> nn.Module | None:
        loaded = None if section is None else self._tried(lambda: load_classifier(section))
        return None if loaded is None else loaded[0]

    def _splits(self, data: Any, splits: Any, classifier: Any) -> dict[str, Images] | None:
        if data is None:
            return None
        pools = self._tried(lambda: load_pools(data, None if classifier is None else classifier.preprocessing))
        if pools is None or splits is None:
            return None
        faults = split_faults(splits, pools)
        self.mistakes += faults
        return None if faults else sliced(splits, pools)

    def _try_foreign(self, evaluation: Any, classifier: Any) -> None:
        """The sources of images out of distribution."""
        if evaluation is None or classifier is None:
            return
        for other in evaluation.out_of_distribution:
            with self._noted():
                load_source(other.source, any_image(classifier.preprocessing.shape))

    def _try_together(self, config: Config, classifier: nn.Module, splits: dict[str, Images]) -> None:
        wanted = config.classifier
        labelled = self._tried(lambda: settled(config, classifier, wanted.preprocessing, splits, wanted.class_names))
        if labelled is None:
            return
        config, splits = labelled
        names = self._tried(lambda: named(config.classifier.class_names, splits["fit"].classes))
        if names is None:
            return
        inputs = CalibrationInputs.of(config, classifier, {}, splits, names)
        with self._noted():
            require_classes(splits, names, needed=("fit",))
        for split in LEVELLED:
            with self._noted():
                check_levels(inputs, split)
        vectors = self._tried(lambda: word_vectors(inputs))
        before = len(self.mistakes)
        with self._noted():
            check_classifier(inputs)
        if len(self.mistakes) == before:
            with self._noted():
                check_accuracy(inputs)
            self._try_detectors(replace(inputs, word_vectors=vectors))

    @torch.no_grad()
    def _try_detectors(self, inputs: CalibrationInputs) -> None:
        """Every layer by itself, then every detector; one that lacks word vectors which are mistaken is not tried."""
        mistaken = inputs.word_vectors is None and inputs.settings.word_vectors is not None
        pixels = inputs.splits["fit"][:TRIED_IMAGES].pixels()
        normalize = inputs.preprocessing.normalize
        for kind, options in inputs.settings.detectors.wanted().items():
            before = len(self.mistakes)
            with self._noted_of(kind):
                try:
                    detector = DETECTORS[kind].create(options, inputs.known)
                except AskanceError:
                    if mistaken:
                        continue
                    raise
                for layer in detector.layers:
                    with self._noted_of(kind), Tap(inputs.classifier, [layer], normalize) as tap:
                        tap(pixels)
                if len(self.mistakes) == before:
                    with tap_for(inputs.classifier, [detector], normalize) as tap:
                        detector.check(tap(pixels), inputs.known)

    @contextmanager
    def _noted_of(self, kind: str) -> Iterator[None]:
        with self._noted():
            try:
                yield
            except AskanceError as error:
                raise ConfigError(f"detectors.{kind}: {printable(str(error))}") from None
