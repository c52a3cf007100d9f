"""Transfer: images made on another classifier."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from askance.calibration.attacks.attack import AimedAttack, Attack, Perturb, PixelClassifier
from askance.calibration.digests import state_digest
from askance.calibration.explain import explain
from askance.calibration.paths import find
from askance.classifiers import build_classifier, load_weights
from askance.errors import ConfigError, did_you_mean


class Surrogate(BaseModel):
    """Another classifier of the same images and classes, normalised as the attacked one is.

    Attributes:
        factory, arguments, weights: as in a config's [classifier]; it returns logits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    factory: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: Path


class Transfer(Attack):
    """Images that another attack makes on a surrogate, tried on the classifier, unseen by it (Papernot et al. 2017).

    `{ name = "t", kind = "transfer", surrogate = { factory = "resnet20", weights = "r.safetensors" }, attack =
    { kind = "pgd", epsilon = "8/255" } }`. Images and the budget are the other attack's.

    Attributes:
        surrogate: what the images are made on.
        attack: which attack makes them: its kind and options; it cannot aim.
    """

    kind: Literal["transfer"]
    needs_gradients: ClassVar[bool] = False
    surrogate: Surrogate
    attack: dict[str, Any]

    @model_validator(mode="after")
    def _attack_is_one(self) -> Self:
        if isinstance(self.made_by(), AimedAttack) and self.attack.get("target_rank") is not None:
            raise ValueError("attack: one that transfers cannot aim: leave target_rank out")
        return self

    def made_by(self) -> Attack:
        """The attack that makes the images.

        Raises:
            ValueError: there is no such attack, or it has no such option.
        """
        from askance.calibration.attacks import ATTACKS

        kinds = [kind for kind in ATTACKS if kind != self.kind]
        kind = self.attack.get("kind")
        if kind not in kinds:
            raise ValueError(f"attack.kind: unknown {kind!r}: {did_you_mean(str(kind), kinds)}")
        try:
            return ATTACKS[kind].model_validate({"name": self.name, **self.attack})
        except ValidationError as error:
            raise ValueError(f"attack.{explain(error, ATTACKS[kind])}") from None

    def beside(self, folder: Path) -> Self:
        """The same, with its weights looked up beside the config."""
        found = self.surrogate.model_copy(update={"weights": find(self.surrogate.weights, folder)})
        return self.model_copy(update={"surrogate": found})

    def check(self, classes: int) -> None:
        """Build the surrogate, and check the attack that makes the images.

        Raises:
            ConfigError: there are no such weights, they are not the factory's, or the attack cannot be run.
        """
        _built(self.surrogate.model_dump_json())
        self.made_by().check(classes)

    def identity(self) -> dict[str, Any]:
        """Its options, the weights by what is in them."""
        weights = state_digest(load_weights(self.surrogate.weights))
        surrogate = self.surrogate.model_dump(mode="json", exclude={"weights"}) | {"weights": weights}
        made_by = self.made_by().identity() | {"kind": self.attack["kind"]}
        return super().identity() | {"surrogate": surrogate, "attack": made_by}

    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:
        """Whatever the other attack does to the surrogate."""
        assert isinstance(predict, PixelClassifier)
        surrogate = PixelClassifier(_built(self.surrogate.model_dump_json()), predict.preprocessing)
        return self.made_by().perturbation(surrogate.requires_grad_(False), classes)


@lru_cache(maxsize=4)
def _built(surrogate: str) -> nn.Module:
    """A surrogate by its JSON: kept, because every piece of images wants it."""
    options = Surrogate.model_validate_json(surrogate)
    if not options.weights.exists():
        raise ConfigError(f"the surrogate's weights {options.weights} do not exist: put them there")
    return build_classifier(options.factory, options.arguments, load_weights(options.weights))
