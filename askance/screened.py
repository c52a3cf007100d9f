"""A screened classifier in this process: a bundle, opened and called with images, gives the answers of a server."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from askance.answers import Answer
from askance.engines import Engine
from askance.errors import BundleError, ConfigError, DataError, ScreenError, did_you_mean
from askance.images import ImageLike, is_picture, is_single, planes_of
from askance.opening import screen_of
from askance.reading import given
from askance.screening.bundle import SealedBundle
from askance.screening.images import MAX_PIXELS, Pixels, decode, of_picture, of_planes

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from askance.detectors.bundle import Bundle

BATCH_IMAGES = 32


def open(  # noqa: A001 (as tarfile.open, Image.open)
    bundle: str | PathLike[str],
    *,
    classifier: nn.Module | None = None,
    allowed_factories: Collection[str] = (),
    engine: Engine | str = Engine.AUTO,
    device: str | torch.device = "cpu",
    single_pass: bool = False,
    require_signature: str | PathLike[str] | None = None,
) -> ScreenedClassifier:
    """Open and verify a bundle: the classifier, its detectors and their calibration, ready to be called.

    Args:
        bundle: its folder.
        classifier: a module to use in place of one built by the bundle's factory; it takes the bundle's own weights.
        allowed_factories: what builds the bundle's classifier and may be imported for that ("package.module:callable",
            or "package.module"), beside the shipped ones, torchvision's and timm's.
        engine: "onnxruntime" computes the bundle's graph, "torch" the classifier itself; "auto" takes the graph where
            there is one, no classifier is given and the device is the CPU.
        device: where the classifier and the detectors run.
        single_pass: leave out the detectors that need altered views of each image, and their extra forward passes.
        require_signature: a keyring, a PEM file of Ed25519 public keys, one of which must have signed the bundle.

    Raises:
        BundleError: the bundle is missing, altered, incomplete, not signed, or does not fit its own description; its
            weights are not the module's; its factory is not allowed; its sentinels are not answered as they were.
        ConfigError: there is no such device or engine; the keyring cannot be used.

    Example:
        >>> screen = askance.open("digits-bundle")  # doctest: +SKIP
        >>> screen("digit.png").verdict  # doctest: +SKIP
        <Verdict.CLEAN: 'CLEAN'>
    """
    keyring = None if require_signature is None else Path(require_signature)
    return ScreenedClassifier(
        SealedBundle.open(Path(bundle), require_signature=keyring),
        classifier=classifier,
        allowed_factories=allowed_factories,
        engine=engine,
        device=device,
        single_pass=single_pass,
    )


def _engine(name: Engine | str) -> Engine:
    try:
        return Engine(name)
    except ValueError:
        raise ConfigError(
            f"unknown engine {name!r}: {did_you_mean(str(name), [one.value for one in Engine])}"
        ) from None


class ScreenedClassifier:
    """A classifier whose every answer is screened; call it with images. A context manager. Safe to share by threads.

    Args:
        bundle: opened.
        classifier: as for `askance.open`.
        allowed_factories: as for `askance.open`.
        engine: as for `askance.open`.
        device: as for `askance.open`.
        single_pass: as for `askance.open`.

    Raises:
        BundleError: a part of the bundle does not fit, its factory is not allowed, or its sentinels are not answered as
            they were at calibration.
        ConfigError: there is no such device or engine.
    """

    def __init__(
        self,
        bundle: SealedBundle,
        *,
        classifier: nn.Module | None = None,
        allowed_factories: Collection[str] = (),
        engine: Engine | str = Engine.AUTO,
        device: str | torch.device = "cpu",
        single_pass: bool = False,
    ) -> None:
        self._sealed = bundle
        sentinels = bundle.sentinels(single_pass=single_pass)
        chosen = _engine(engine)
        if chosen is Engine.AUTO and (classifier is not None or str(device).partition(":")[0] != "cpu"):
            chosen = Engine.TORCH

        def build(*given: Any) -> Any:
            from askance.classifiers.trust import standing_in  # needs torch, as a graph does not

            return standing_in(classifier, allowed_factories)(*given)

        self._screen = screen_of(bundle, chosen, build, single_pass=single_pass).to(str(device))
        try:
            sentinels.prove(self._screen)
        except BundleError as error:
            raise BundleError(f"{bundle.path} {error}") from error.__cause__

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is a sequence of str, too, and one image
        self, images: bytes | str | PathLike[str] | Image, explain: bool = False
    ) -> Answer: ...
    @overload
    def __call__(self, images: NDArray[Any] | Tensor, explain: bool = False) -> Any: ...  # by its dimensions
    @overload
    def __call__(self, images: Sequence[ImageLike], explain: bool = False) -> list[Answer]: ...

    def __call__(self, images: Any, explain: bool = False) -> Any:
        """Screen one image or several.

        Args:
            images: one image-like (a path, a file's content, a PIL image, an array [C, H, W], [H, W, C] or [H, W]), or
                several: a sequence of them, or an array with one dimension more.
            explain: whether each detector explains itself.

        Returns:
            An Answer for one, a list of them, in order, for several.

        Raises:
            DataError: an image is not what the classifier takes; of several, the line says which.
            ScreenError: the classifier or a detector gave NaN or infinity for an image.
        """
        if is_single(images):
            return self._screened([images], explain, named=False)[0]
        return self._screened(list(images), explain, named=True)

    def _screened(self, images: list[Any], explain: bool, *, named: bool) -> list[Answer]:
        inputs = [self._input(image, f"image {i}: " if named else "") for i, image in enumerate(images)]
        answers: list[Answer] = []
        for start in range(0, len(inputs), BATCH_IMAGES):
            batch = np.stack(inputs[start : start + BATCH_IMAGES])
            for answer in self._screen(batch, explain):
                if isinstance(answer, ScreenError):
                    raise ScreenError(f"image {len(answers)}: {answer}" if named else str(answer))
                answers.append(answer)
        return answers

    def _input(self, image: Any, name: str) -> Pixels:
        """One image-like as the classifier takes it, float32 [C, H, W] in [0, 1]."""
        preprocessing = self._screen.preprocessing
        try:
            if is_picture(image):
                return of_picture(image, preprocessing)
            if isinstance(image, (str, PathLike)):
                image = given(Path(image), DataError)
            if isinstance(image, bytes):
                return decode(image, preprocessing, MAX_PIXELS)
            return of_planes(planes_of(image), preprocessing)
        except DataError as error:
            raise DataError(f"{name}{error}") from None

    @property
    def bundle(self) -> Bundle:
        """What was opened, with its classifier and its detectors themselves: needs torch."""
        from askance.detectors.bundle import Bundle

        return Bundle.of(self._sealed)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the probabilities."""
        return self._screen.class_names

    def close(self) -> None:
        """Remove the hooks from the classifier."""
        self._screen.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _repr_html_(self) -> str:
        return self._sealed._repr_html_()
