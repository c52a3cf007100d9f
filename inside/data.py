"""Plain data of what is seen inside: what is drawn, and nothing of how."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Row = tuple[float, ...]
EDGE = 4.0
"""The activation map is drawn on [-EDGE, EDGE]^2: its prior is a unit Gaussian, and a single outlier far out would
leave the rest a dot (paper 001, section 2.8)."""


class Part(BaseModel):
    """Never changed, and nothing in it that has no name."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ActivationMap(Part):
    """Where images lie on the map that introspection draws of all activations (paper 001, Fig. 2).

    Attributes:
        points: z of each image, two numbers.
        background: log10 of the error that is estimated at places of [-EDGE, EDGE]^2, evenly spaced: rows from z_2 =
            -EDGE up, columns from z_1 = -EDGE to the right.
    """

    points: tuple[tuple[float, float], ...]
    background: tuple[Row, ...]


class ErrorEstimates(Part):
    """log10 of the error that each of introspection's estimators expects of each image (paper 001, Fig. 7).

    Attributes:
        hidden: by the one that reads the encoder's last hidden layer.
        latent: by the one that reads z, as in the paper.
    """

    hidden: Row
    latent: Row


class SortedLayer(Part):
    """A layer's units, sorted by the class that moves them most (paper 001, Eqs. 9 and 10, Fig. 3).

    Attributes:
        units: how many there are that ever vary; of many only some are kept below, evenly taken from the sorted ones.
        preferred: the class of each unit, ascending.
        expected: E[h | class] of each unit, in standard deviations over the fit split, a row for each class.
        agreement: the share of all units whose class is the one that moves them most among images fitted on.
        correlation: of E[h | class] with the mean over such images of each class; None where there was none.
    """

    units: int
    preferred: tuple[int, ...]
    expected: tuple[Row, ...]
    agreement: Share
    correlation: tuple[float | None, ...]


class Codes(Part):
    """A self-organizing map of one layer, and what it says of the layer's codes (paper 004).

    Attributes:
        side: units along each side of the torus, row by row in what follows.
        fitted: how often each predicted class of the fit split hit each unit, [K][side^2].
        seen: the same of the images seen.
        centres: each class's centre (row, column) on the unfolded map of the fit split; None where there is none.
        information: mutual information of unit and class as a share of the class's entropy, on the fit split.
        purity: the share of the fit split that lies on a unit most of whose hits are of its class.
        spreads: how far the hits of each class lie from its centre on average, in units of the grid; None where there
            are none.
        quantization_error: the mean distance to the best matching unit, of the images seen.
        topographic_error: the share of these whose two best units are no neighbours.
    """

    side: int
    fitted: tuple[tuple[int, ...], ...]
    seen: tuple[tuple[int, ...], ...]
    centres: tuple[tuple[float, float] | None, ...]
    information: Share
    purity: Share
    spreads: tuple[float | None, ...]
    quantization_error: float
    topographic_error: Share

    @property
    def spread(self) -> float:
        """Of a class on average, in units of the grid."""
        return fmean(value for value in self.spreads if value is not None)


class Success(Part):
    """How often an attack fools the classifier.

    Attributes:
        attack: the one that moves images least among those that neither always succeed nor hardly ever.
        by_class: the share of each true class's images that it succeeds with; None where it tried none.
    """

    attack: str
    by_class: tuple[float | None, ...]


class Shown(Part):
    """One image, and what was read of it.

    Attributes:
        of: the attack, or "clean".
        image: a PNG file, in base64.
        label: the true class.
        predicted: what the classifier takes it for.
        p_values: by score, the fused one first.
    """

    of: str
    image: str
    label: int
    predicted: int
    p_values: Mapping[str, float]


class Gallery(Part):
    """The images that a calibration is judged by at worst.

    Attributes:
        missed: those that attacks fooled the classifier with, least suspicious first; a few of each attack.
        alarms: clean ones, most suspicious first.
    """

    missed: tuple[Shown, ...]
    alarms: tuple[Shown, ...]


class Cloud(Part):
    """Where noisy copies of one image lie on the activation map (paper 001, Fig. 5).

    Attributes:
        sigma: standard deviation of the noise, in pixel values.
        points: z of each copy.
        errors: log10 of the error that is expected of each.
        predicted: what the classifier takes each for.
    """

    sigma: float
    points: tuple[tuple[float, float], ...]
    errors: Row
    predicted: tuple[int, ...]


class Trajectory(Part):
    """Where one image goes on the activation map while it is changed towards a class (paper 001, Fig. 6).

    Attributes:
        target: the class.
        points: z at the start and after each step.
        errors: log10 of the error that is expected there.
        predicted: what the classifier takes it for.
    """

    target: int
    points: tuple[tuple[float, float], ...]
    errors: Row
    predicted: tuple[int, ...]

    @property
    def arrives(self) -> bool:
        """Whether the classifier takes it for the target at the end."""
        return self.predicted[-1] == self.target


class Wandering(Part):
    """Where one image goes on the activation map.

    Attributes:
        clouds: under noise.
        trajectories: on its way to other classes.
    """

    clouds: tuple[Cloud, ...] = ()
    trajectories: tuple[Trajectory, ...] = ()


class Inside(Part):
    """What is seen of some images, and of the detectors by themselves.

    Attributes:
        class_names: K names.
        labels: the true class of each image seen.
        predicted: what the classifier takes it for.
        activation_map: None without introspection, or where z has not two numbers.
        errors: None without introspection.
        sorted_network: of each layer that introspection reads.
        codes: of each layer with a self-organizing map.
        confusion: the confusion index of each layer with a library (paper 000, Eq. 4), NaN as None.
        gallery: None where nothing was attacked.
        success: None where no attack tells classes apart.
        profiles: the 5%, 50% and 95% quantiles of the share of 1-vs-2 tests that the answer wins, by layer of the
            semantic signature (paper 003).
    """

    class_names: tuple[str, ...]
    labels: tuple[int, ...]
    predicted: tuple[int, ...]
    activation_map: ActivationMap | None = None
    errors: ErrorEstimates | None = None
    sorted_network: Mapping[str, SortedLayer] = {}
    codes: Mapping[str, Codes] = {}
    confusion: Mapping[str, tuple[tuple[float | None, ...], ...]] = {}
    gallery: Gallery | None = None
    success: Success | None = None
    profiles: Mapping[str, tuple[float, float, float]] = {}

    @property
    def right(self) -> tuple[bool, ...]:
        """Whether the classifier is right on each image seen."""
        return tuple(label == given for label, given in zip(self.labels, self.predicted, strict=True))
