"""The calibration config: one TOML file, validated; an unknown key is an error that names it."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from askance.calibration.attack_options import AttackConfig
from askance.calibration.controls import ControlConfig
from askance.detectors import (
    ConstellationOptions,
    IntrospectionOptions,
    Levels,
    LibraryNetworkOptions,
    SelfOrganizingMapOptions,
    SemanticSignatureOptions,
)
from askance.detectors.preprocessing import Preprocessing
from askance.errors import ConfigError, did_you_mean

PeerName = Literal["max_softmax", "energy", "mahalanobis", "lid", "feature_squeezing", "knn"]
TRAINED_PEERS = ("mahalanobis", "lid")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassifierConfig(_Section):
    """The classifier: how to build it, where its weights are, what it takes and what its classes are called.

    Attributes:
        factory: an example classifier ("lenet"), "torchvision:resnet18", or an import path "package.module:function".
        arguments: keyword arguments of the factory.
        weights: .safetensors, or .pt / .pth holding a state dict; `askance train` writes it.
        preprocessing: input shape and normalisation.
        class_names: in the order of the logits; default: the data set's.
    """

    factory: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: Path
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None


class TrainingConfig(_Section):
    """How `askance train` trains an example classifier: stochastic gradient descent at a constant rate, seeded."""

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.5, ge=0, lt=1)
    seed: int = 0


class DataConfig(_Section):
    """Where images come from.

    Attributes:
        source: "sklearn:digits", "torchvision:MNIST", "npz:PATH" or "folder:PATH"; the pool named `train`.
        test_source: a second source, the pool named `test`; torchvision sets bring their own.
        seed: each pool is shuffled once by it, so that splits are exchangeable (MNIST's first 5,000 test images, say,
            come from other writers than its last).
        classes: the classes to keep, in the order of the labels; default: all.
    """

    source: str
    test_source: str | None = None
    classes: tuple[str, ...] | None = Field(default=None, min_length=2)
    seed: int = 0


class SplitsConfig(_Section):
    """Which images do what: slices of the shuffled pools, "train[:50000]" or "test".

    Attributes:
        train: the classifier learns from these.
        fit: the detectors learn from these (they may be the classifier's own).
        held_out: labelled images that the classifier never saw, for the error estimator; may be part of `fit`.
        calibrate, fuse, evaluate: disjoint from one another and from all above.
    """

    train: str
    fit: str
    held_out: str | None = None
    calibrate: str
    fuse: str
    evaluate: str


class SemanticSignatureConfig(SemanticSignatureOptions):
    """The detector's options, and where the classes' word vectors come from.

    Attributes:
        word_vectors: a word2vec file, text or (.bin) binary.
        words: {class name: word} where the vectors know the class by another word.
    """

    word_vectors: Path
    words: dict[str, str] = Field(default_factory=dict)

    def options(self) -> SemanticSignatureOptions:
        """The detector's own options."""
        return SemanticSignatureOptions.model_validate(self.model_dump(exclude={"word_vectors", "words"}))


class DetectorsConfig(_Section):
    """The detectors to fit; one left out is not in the bundle."""

    library_network: LibraryNetworkOptions | None = None
    introspection: IntrospectionOptions | None = None
    self_organizing_map: SelfOrganizingMapOptions | None = None
    semantic_signature: SemanticSignatureConfig | None = None
    constellation: ConstellationOptions | None = None

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        if not any(getattr(self, name) for name in type(self).model_fields):
            raise ValueError(f"at least one detector is needed: {', '.join(type(self).model_fields)}")
        return self


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
    classes: tuple[str, ...] | None = Field(default=None, min_length=1)
    images: int = Field(default=1000, ge=1)


class EvaluationConfig(_Section):
    """The evaluation.

    Attributes:
        attacks: on the evaluation split.
        attacked_images: how many correctly classified images each attack starts from, unless it says so itself.
        seen: the attacks that may be trained on, all of one kind: they weigh the fused score's components, and the
            peers that need an attack learn from them. They are run on the calibration split; rows of `attacks` of
            their kind count as seen. Without them the fused score is untrained.
        controls: changes that are not attacks, on `attacked_images` correctly classified images.
        out_of_distribution: other images.
        peers: other people's detectors to fit and score beside ours.
    """

    attacks: tuple[AttackConfig, ...] = Field(min_length=1)
    attacked_images: int = Field(default=1000, ge=1)
    seen: tuple[AttackConfig, ...] = ()
    controls: tuple[ControlConfig, ...] = ()
    out_of_distribution: tuple[OutOfDistributionConfig, ...] = ()
    peers: tuple[PeerName, ...] = ("max_softmax",)

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
    def _trained_peers_have_a_seen_attack(self) -> Self:
        trained = [name for name in self.peers if name in TRAINED_PEERS]
        if trained and not self.seen:
            raise ValueError(f"the peer {trained[0]} is trained on an attack: give one in evaluation.seen")
        kinds = sorted({attack.kind for attack in self.seen})
        if len(kinds) > 1:
            raise ValueError(f"seen attacks must be of one kind, got {' and '.join(kinds)}: the others stay unseen")
        return self


class Config(_Section):
    """A whole calibration."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    classifier: ClassifierConfig
    training: TrainingConfig = TrainingConfig()
    data: DataConfig
    splits: SplitsConfig
    detectors: DetectorsConfig
    levels: Levels = Levels()
    evaluation: EvaluationConfig
    batch_size: int = Field(default=500, ge=1)


def data_root() -> Path | None:
    """The folder named by ASKANCE_DATA, or None."""
    value = os.environ.get("ASKANCE_DATA")
    return Path(value) if value else None


def find(path: Path, beside: Path) -> Path:
    """Where a path of a config leads: absolute, else beside the config if it is there, else under ASKANCE_DATA."""
    root = data_root()
    if path.is_absolute() or (beside / path).exists() or root is None or not (root / path).exists():
        return beside / path
    return root / path


def load_config(path: Path) -> Config:
    """Read and validate a config; relative paths in it are resolved beside it, then under ASKANCE_DATA.

    Raises:
        ConfigError: it cannot be read, is not TOML, or does not validate; the message names the key.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, Config)}") from None
    return _resolved(config, path.parent)


def _resolved(config: Config, beside: Path) -> Config:
    classifier = config.classifier.model_copy(update={"weights": find(config.classifier.weights, beside)})
    detectors, semantic = config.detectors, config.detectors.semantic_signature
    if semantic is not None:
        semantic = semantic.model_copy(update={"word_vectors": find(semantic.word_vectors, beside)})
        detectors = detectors.model_copy(update={"semantic_signature": semantic})
    sources = {name: _source(getattr(config.data, name), beside) for name in ("source", "test_source")}
    others = tuple(
        other.model_copy(update={"source": _source(other.source, beside)})
        for other in config.evaluation.out_of_distribution
    )
    return config.model_copy(
        update={
            "classifier": classifier,
            "detectors": detectors,
            "data": config.data.model_copy(update=sources),
            "evaluation": config.evaluation.model_copy(update={"out_of_distribution": others}),
        }
    )


def _source(source: str | None, beside: Path) -> str | None:
    """A data source whose path leads beside the config, if it is there; else as it was, for ASKANCE_DATA."""
    kind, colon, path = (source or "").partition(":")
    if kind in ("npz", "folder") and colon and (beside / path).exists():
        return f"{kind}:{beside / path}"
    return source


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing wrong, in one line: the key, what is wrong with it, and the nearest known key if misspelt."""
    # A misspelt key that is required is two errors, missing and unknown: the second is the one that helps.
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    path, models = _followed(model, first["loc"])
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}: {did_you_mean(path[-1], [name for m in models for name in m.model_fields])}"
    if first["type"] == "missing":
        return f"the key {key!r} is missing"
    if first["type"] == "union_tag_invalid":
        known = first["ctx"]["expected_tags"].replace("'", "").split(", ")
        return f"{key}.kind: unknown {first['ctx']['tag']!r}: {did_you_mean(first['ctx']['tag'], known)}"
    if first["type"] == "union_tag_not_found":
        return f"the key {key + '.kind'!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" + ("" if isinstance(first["input"], dict) else f", got {first['input']!r}")


def _followed(model: type[BaseModel], where: tuple[int | str, ...]) -> tuple[list[str], list[type[BaseModel]]]:
    """The key that an error's location names, and the models that its last part is looked for in."""
    models, path = [model], list[str]()
    for i, part in enumerate(where):
        tagged = [m for m in models if "kind" in m.model_fields and part in get_args(m.model_fields["kind"].annotation)]
        if tagged:  # pydantic names the kind of a table among others; the file has no such key
            models = tagged
            continue
        path.append(str(part))
        if isinstance(part, str) and i < len(where) - 1:
            fields = [m.model_fields[part] for m in models if part in m.model_fields]
            models = [found for field in fields for found in _models_in(field.annotation)]
    return path, models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models_in(part)]
