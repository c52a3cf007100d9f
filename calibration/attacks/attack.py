"""The contract of an attack: its options, and how it perturbs images under a classifier, in pixel space, seeded."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor, nn

from askance.screening.preprocessing import Preprocessing

Perturb = Callable[[Tensor, Tensor], Tensor]
"""(images [N, C, H, W] in [0, 1], labels or targets [N]) -> perturbed images."""


def fraction(value: Any) -> Any:
    """Read "8/255" as the number it is: budgets are customarily given so."""
    if isinstance(value, bool):  # which pydantic would take for 0 or 1
        raise ValueError('expected a number, or a fraction such as "8/255"')
    if not isinstance(value, str):
        return value
    try:
        return float(Fraction(value))
    except (ValueError, ZeroDivisionError):
        raise ValueError('expected a number, or a fraction such as "8/255"') from None


Pixels = Annotated[float, BeforeValidator(fraction), Field(gt=0, le=1)]
"""A distance in pixel values, (0, 1]; "8/255" is understood."""

Distance = Annotated[float, BeforeValidator(fraction), Field(gt=0)]
"""An L2 distance in pixel values, over all pixels together; "128/255" is understood."""


class Attack(BaseModel, ABC):
    """An attack and its options, as a row of a config spells them: `{ name = "p", kind = "pgd", epsilon = 0.1 }`.

    A subclass narrows `kind` to a literal, adds its own options, and writes `perturbation`.

    Attributes:
        name: of its row in the tables.
        images: how many correctly classified images it starts from; default: the evaluation's `attacked_images`.
        seed: of its random choices.
        kind: the attack's own name.
        needs_gradients: whether it follows the classifier's gradient; of the class, no option.
        libraries: beside advertorch, foolbox and torch, whose versions its images depend on; of the class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.+-]*$")
    images: int | None = Field(default=None, ge=1)
    seed: int = 0
    kind: str
    needs_gradients: ClassVar[bool] = True
    libraries: ClassVar[tuple[str, ...]] = ()

    def identity(self) -> dict[str, Any]:
        """What its images depend on of it, JSON-ready: its options, what files hold in place of their paths."""
        return self.model_dump(mode="json", exclude={"name", "images", "seed"})

    def beside(self, folder: Path) -> Self:  # noqa: ARG002
        """The same with its paths, if it has any, looked up beside a config in that folder."""
        return self

    def check(self, classes: int) -> None:
        """Refuse what can be refused before any work.

        Raises:
            ConfigError: it cannot attack a classifier of so many classes.
        """

    @abstractmethod
    def perturbation(self, predict: nn.Module, classes: int) -> Perturb:
        """What perturbs images so that `predict` gets them wrong (or, if the attack aims, takes them for the targets).

        It may leave [0, 1], which `perturb` clips, and draws at random from torch's own generator, which that seeds.

        Args:
            predict: maps pixels [N, C, H, W] in [0, 1] to logits [N, K]; its parameters need no gradients.
            classes: K.
        """


class AimedAttack(Attack):
    """An attack that can aim.

    Attributes:
        target_rank: None (untargeted), or aim at the class whose word vector is the nth most similar to the true
            class's: 1 the most similar, -1 the least (paper 003, section 5.3).
    """

    target_rank: int | None = None

    @property
    def targeted(self) -> bool:
        """Whether it aims: it is then given targets in place of labels."""
        return self.target_rank is not None


class PixelClassifier(nn.Module):
    """A classifier that takes pixels in [0, 1]: normalisation is inside, so budgets and clipping are in pixels."""

    def __init__(self, classifier: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.classifier = classifier
        self.preprocessing = preprocessing
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images [B, C, H, W]."""
        logits: Tensor = self.classifier(self.preprocessing.normalize(images))
        return logits


def perturb(predict: PixelClassifier, attack: Attack, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Perturb every image to be misclassified, or, where the attack aims, to be taken for its target.

    Args:
        predict: in pixel space.
        attack: with its options.
        images: float32 [N, C, H, W] in [0, 1].
        labels: [N], the true classes, or the targets if the attack aims.
        seed: of the attack's random choices.

    Returns:
        float32 [N, C, H, W] in [0, 1]; whether each succeeded is for the caller to see.
    """
    frozen = [(p, p.requires_grad) for p in predict.parameters()]
    for parameter, _ in frozen:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advertorch's own calls of what torch has since renamed
            torch.manual_seed(seed)
            with torch.no_grad():
                classes = predict(images[:1]).shape[1]
            attack.check(classes)
            return attack.perturbation(predict, classes)(images.contiguous(), labels).detach().clamp(0, 1)
    finally:
        for parameter, wanted in frozen:
            parameter.requires_grad_(wanted)
