"""The calibration config: one TOML file, validated; an unknown key is an error that names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model, model_validator

from askance.calibration.attacks import ATTACKS, Attack, Pixels
from askance.calibration.baselines import BASELINES
from askance.calibration.benign import BENIGN_IMAGES
from askance.calibration.controls import ControlConfig, spelled_out
from askance.calibration.explain import explain, explain_all
from askance.calibration.ladder import KINDS as LADDER
from askance.calibration.paths import find
from askance.calibration.sources import SOURCES
from askance.detectors import DETECTORS, Options
from askance.errors import ConfigError
from askance.judgement import Levels
from askance.reading import read_toml
from askance.screening.class_names import ClassNames
from askance.screening.output import Output
from askance.screening.preprocessing import Preprocessing

if TYPE_CHECKING:
    AttackConfig = Attack
    BaselineName = str
else:
    AttackConfig = Annotated[Union[tuple(ATTACKS.values())], Field(discriminator="kind")]  # noqa: UP007
    BaselineName = Literal[tuple(BASELINES)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassifierConfig(_Section):
    """The classifier: how to build it, where its weights are, what it takes and what its classes are called.

    Attributes:
        factory: an example classifier ("lenet"), "torchvision:resnet18", "timm:resnet18", "transformers:vit", or an
            import path "package.module:function".
        arguments: keyword arguments of the factory.
        weights: a state dict's file, as `classifiers.load_weights` reads it; `askance train` writes a .safetensors.
        preprocessing: input shape and normalisation.
        class_names: in the order of the logits, which is that of the data's labels; default: the data set's own.
        output: the key, attribute or index of what the classifier returns that holds the logits ("logits", 0); default:
            it returns the logits and nothing else.
    """

    factory: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: Path
    preprocessing: Preprocessing
    class_names: ClassNames | None = None
    output: Output | None = None


class TrainingConfig(_Section):
    """How `askance train` trains an example classifier: stochastic gradient descent at a constant rate, seeded."""

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.5, ge=0, lt=1)
    seed: int = 0


class HardeningConfig(_Section):
    """How `askance harden` trains the classifier, by images that are attacked as it learns; seeded as training is.

    Attributes:
        epsilon: the attacker's budget, L-infinity, in pixel values.
        method: "adversarial" learns attacked images alone, "trades" holds the answer to an image and to what an attack
            makes of it together, "consistent" the activations.
        start: from "weights", the config's own, or "anew".
        steps: of the gradient, from a random start, in each attack; one is fast, and may be blind to more.
        trades_weight: of the answers' difference, beside the loss of images as they are (the paper's 1 / lambda).
        consistency_weight: of the activations' relative difference, beside the losses of both.
        layers: whose activations they are, and are measured; default: those that the detectors read.
        epochs, batch_size: of the training.
        learning_rate: at its greatest; it falls along half a cosine, after
        warm_up: the share of the training over which budget and rate grow from nothing.
        momentum, weight_decay: of stochastic gradient descent.
        ema_decay: of the running average of the weights, which is what is kept, at each step.
    """

    epsilon: Pixels
    method: Literal["adversarial", "trades", "consistent"] = "trades"
    start: Literal["weights", "anew"] = "weights"
    steps: int = Field(default=7, ge=1)
    trades_weight: float = Field(default=6.0, gt=0)
    consistency_weight: float = Field(default=0.5, gt=0)
    layers: tuple[str, ...] | None = Field(default=None, min_length=1)
    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=64, ge=2)
    learning_rate: float = Field(default=0.02, gt=0)
    warm_up: float = Field(default=0.2, ge=0, lt=1)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    ema_decay: float = Field(default=0.99, ge=0, lt=1)


class DataConfig(_Section):
    """Where images come from.

    Attributes:
        source: "sklearn:digits", "torchvision:MNIST", "npz:PATH", "folder:PATH" or another of SOURCES; the pool named
            `train`.
        test_source: a second source, the pool named `test`; torchvision sets bring their own.
        seed: each pool is shuffled once by it, so that splits are exchangeable (MNIST's first 5,000 test images, say,
            come from other writers than its last).
        classes: the classes to keep, in the order of the labels; default: all.
    """

    source: str
    test_source: str | None = None
    classes: ClassNames | None = Field(default=None, min_length=2)
    seed: int = 0


class SplitsConfig(_Section):
    """Which images do what: slices of the shuffled pools, "train[:50000]" or "test".

    Attributes:
        train: the classifier learns from these, where `askance train` trains it.
        fit: the detectors learn from these (they may be the classifier's own).
        held_out: labelled images that the classifier never saw, for the error estimator; may be part of `fit`.
        calibrate, fuse, evaluate: disjoint from one another and from all above.
    """

    train: str | None = None
    fit: str
    held_out: str | None = None
    calibrate: str
    fuse: str
    evaluate: str


class WordVectorsConfig(_Section):
    """Where the classes' word vectors come from: for the detectors that want them, and for attacks that aim.

    Attributes:
        file: word2vec format, text or (.bin) binary.
        words: {class name: word} where the vectors know the class by another word.
    """

    file: Path
    words: dict[str, str] = Field(default_factory=dict)


class _DetectorSections(_Section):
    """The detectors to fit; one left out is not in the bundle."""

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        if not self.wanted():
            raise ValueError(f"at least one detector is needed: {', '.join(type(self).model_fields)}")
        return self

    def wanted(self) -> dict[str, Options]:
        """The options of the detectors to fit, by kind, in the order of DETECTORS."""
        sections = {kind: getattr(self, kind) for kind in type(self).model_fields}
        return {kind: options for kind, options in sections.items() if options is not None}

    def replaced(self, kind: str, **changes: Any) -> Self:
        """The same with some options of one detector changed."""
        return self.model_copy(update={kind: self.wanted()[kind].model_copy(update=changes)})


if TYPE_CHECKING:

    class DetectorsConfig(_DetectorSections):
        """One section for each of DETECTORS."""
else:
    DetectorsConfig = create_model(
        "DetectorsConfig",
        __base__=_DetectorSections,
        __doc__=_DetectorSections.__doc__,
        **{kind: (detector.options_class | None, None) for kind, detector in DETECTORS.items()},
    )


class OutOfDistributionConfig(_Section):
    """Images of something else altogether, brought to the classifier's size and number of channels.

    Attributes:
        name: of the row in the tables.
        source: as in `data.source`; all its images, pools together.
        classes: the classes to keep; default: all.
        images: how many of them, at most.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.+-]*$")
    source: str
    classes: ClassNames | None = Field(default=None, min_length=1)
    images: int = Field(default=1000, ge=1)


class EvaluationConfig(_Section):
    """The evaluation.

    Attributes:
        attacks: on the evaluation split.
        attacked_images: how many correctly classified images each attack starts from, unless it says so itself.
        seen: the attacks that may be trained on, all of one kind: they weigh the fused score's components, and the
            baselines that need an attack learn from them. They are run on the calibration split; rows of `attacks` of
            their kind count as seen.
        ladder: train on a ladder of attacks, whose budgets are found on the calibration split
            (`calibration.ladder`), where no `seen` ones are given. Without either the fused score is untrained.
        benign_images: images that each mild change is made of, for the fused score to be calm on them; 0 is none.
        controls: changes that are not attacks, on `attacked_images` correctly classified images; "all" stands for every
            kind at every severity.
        out_of_distribution: other images.
        baselines: detectors from the literature to fit and score beside ours.
    """

    attacks: tuple[AttackConfig, ...] = Field(min_length=1)
    attacked_images: int = Field(default=1000, ge=1)
    seen: tuple[AttackConfig, ...] = ()
    ladder: bool = True
    benign_images: int = Field(default=BENIGN_IMAGES, ge=0)
    controls: Annotated[tuple[ControlConfig, ...], BeforeValidator(spelled_out)] = ()
    out_of_distribution: tuple[OutOfDistributionConfig, ...] = ()
    baselines: tuple[BaselineName, ...] = ("max_softmax",)

    @model_validator(mode="before")
    @classmethod
    def _seen_attacks_in_place_of_the_ladder(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and content.get("seen"):
            return {"ladder": False, **content}
        return content

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        for rows in (self.attacks, self.seen, self.controls, self.out_of_distribution):
            names = [row.name for row in rows]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"two rows share the name {twice[0]!r}")
        if any(attack.name == "worst_case" for attack in self.attacks):
            raise ValueError("the name 'worst_case' is taken: it is the row of the worst case over all attacks")
        return self

    @model_validator(mode="after")
    def _trained_baselines_have_a_seen_attack(self) -> Self:
        trained = [name for name in self.baselines if BASELINES[name].learns_from_attacks]
        if trained and not self.seen_kinds:
            raise ValueError(
                f"the baseline {trained[0]} is trained on an attack: give one in evaluation.seen, or ladder = true"
            )
        if self.ladder and self.seen:
            raise ValueError("give seen attacks or the ladder, not both")
        kinds = sorted({attack.kind for attack in self.seen})
        if len(kinds) > 1:
            raise ValueError(f"seen attacks must be of one kind, got {' and '.join(kinds)}: the others stay unseen")
        return self

    @property
    def seen_kinds(self) -> frozenset[str]:
        """The kinds of attack that may be trained on."""
        return LADDER if self.ladder else frozenset(attack.kind for attack in self.seen)


class Settings(_Section):
    """What a calibration does, wherever classifier and data come from."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    detectors: DetectorsConfig
    word_vectors: WordVectorsConfig | None = None
    levels: Levels = Levels()
    evaluation: EvaluationConfig
    batch_size: int = Field(default=500, ge=1)


class Config(Settings):
    """A whole calibration: what a TOML file holds."""

    classifier: ClassifierConfig
    training: TrainingConfig = TrainingConfig()
    hardening: HardeningConfig | None = None
    data: DataConfig
    splits: SplitsConfig


def read_config(path: Path) -> dict[str, Any]:
    """The content of a config's file.

    Raises:
        ConfigError: it cannot be read, or is not TOML.
    """
    try:
        return read_toml(path)
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def load_config(path: Path) -> Config:
    """Read and validate a config; relative paths in it are resolved beside it, then under ASKANCE_DATA.

    Raises:
        ConfigError: it cannot be read, is not TOML, or does not validate; the message names the key.
    """
    content = read_config(path)
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        more = len(explain_all(error, Config)) - 1
        rest = f" (and {more} more: askance validate {path})" if more else ""
        raise ConfigError(f"{path}: {explain(error, Config)}{rest}") from None
    return resolved(config, path.parent)


def resolved(config: Config, beside: Path) -> Config:
    """The same with its relative paths resolved."""
    return config.model_copy(update={name: placed(getattr(config, name), beside) for name in type(config).model_fields})


def placed(section: Any, beside: Path) -> Any:
    """A section of a config with its relative paths resolved: beside `beside`, then under ASKANCE_DATA."""
    match section:
        case ClassifierConfig():
            return section.model_copy(update={"weights": find(section.weights, beside)})
        case WordVectorsConfig():
            return section.model_copy(update={"file": find(section.file, beside)})
        case DataConfig():
            sources = {name: _source(getattr(section, name), beside) for name in ("source", "test_source")}
            return section.model_copy(update=sources)
        case EvaluationConfig():
            others = tuple(
                other.model_copy(update={"source": _source(other.source, beside)})
                for other in section.out_of_distribution
            )
            attacks = {
                name: tuple(attack.beside(beside) for attack in getattr(section, name)) for name in ("attacks", "seen")
            }
            return section.model_copy(update={"out_of_distribution": others, **attacks})
    return section


def _source(source: str | None, beside: Path) -> str | None:
    """A data source whose path leads beside the config, if it is there; else as it was, for ASKANCE_DATA."""
    kind, colon, path = (source or "").partition(":")
    if colon and kind in SOURCES and SOURCES[kind].is_path and (beside / path).exists():
        return f"{kind}:{beside / path}"
    return source
