"""The attacks' options: one class per attack, its budget and its paper; configs spell them `{ kind = "pgd", ... }`."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


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


class AttackOptions(BaseModel):
    """What every attack has.

    Attributes:
        name: of its row in the tables.
        images: how many correctly classified images it starts from; default: the evaluation's `attacked_images`.
        seed: of its random choices.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.+-]*$")
    images: int | None = Field(default=None, ge=1)
    seed: int = 0


class _Targetable(AttackOptions):
    """An attack that can aim.

    Attributes:
        target_rank: None (untargeted), or aim at the class whose word vector is the nth most similar to the true
            class's: 1 the most similar, -1 the least (paper 003, section 5.3).
    """

    target_rank: int | None = None


class FGSM(_Targetable):
    """Fast gradient sign method, L-infinity (Goodfellow et al. 2015).

    Attributes:
        epsilon: the budget.
        smallest: of 16 equal steps along the gradient's sign, up to the budget, take the first that succeeds.
    """

    kind: Literal["fgsm"]
    epsilon: Pixels
    smallest: bool = False


class IterativeAttack(_Targetable):
    """Projected gradient steps, L-infinity.

    bim: from the image itself (Kurakin et al. 2017); pgd: from a random point of the budget (Madry et al. 2018);
    mim: with momentum 1 (Dong et al. 2018).

    Attributes:
        epsilon: the budget.
        steps, step_size: of the gradient.
    """

    kind: Literal["bim", "pgd", "mim"]
    epsilon: Pixels
    steps: int = Field(default=40, ge=1)
    step_size: Pixels = 0.01


class MinimalAttack(AttackOptions):
    """The least L2 perturbation that an optimisation with Adam, or with ISTA for the elastic net, finds.

    cw: Carlini and Wagner (2017); ead: elastic net, L1 and L2 (Chen et al. 2018).

    Attributes:
        confidence: by how much the wrong logit is to lead.
        searches: binary search steps over the weight of the two losses.
        steps: of each search.
        learning_rate: of the steps.
        initial_weight: of the misclassification loss, in the first search.
    """

    kind: Literal["cw", "ead"]
    confidence: float = Field(default=0.0, ge=0)
    searches: int = Field(default=5, ge=1)
    steps: int = Field(default=100, ge=1)
    learning_rate: float = Field(default=0.01, gt=0)
    initial_weight: float = Field(default=0.01, gt=0)


class DDN(AttackOptions):
    """Decoupled direction and norm, minimal L2 (Rony et al. 2019); its images are quantised to 256 levels."""

    kind: Literal["ddn"]
    steps: int = Field(default=100, ge=1)


class DeepFool(AttackOptions):
    """Steps to the nearest linearised boundary, minimal L2 (Moosavi-Dezfooli et al. 2016; foolbox)."""

    kind: Literal["deepfool"]
    steps: int = Field(default=50, ge=1)
    overshoot: float = Field(default=0.02, ge=0)


class FAB(AttackOptions):
    """Fast adaptive boundary, minimal L-infinity (Croce and Hein 2020)."""

    kind: Literal["fab"]
    steps: int = Field(default=20, ge=1)


class SpatialTransform(AttackOptions):
    """A smooth flow of pixels, no change of colours (Xiao et al. 2018).

    Attributes:
        steps: of L-BFGS.
        smoothness: weight of the flow's roughness.
    """

    kind: Literal["spatial"]
    steps: int = Field(default=50, ge=1)
    smoothness: float = Field(default=2.0, gt=0)


class LocalSearch(AttackOptions):
    """A few pixels changed, found greedily without gradients (Narodytska and Kasiviswanathan 2017).

    Attributes:
        rounds: of the search.
        pixels: changed in each round.
    """

    kind: Literal["local_search"]
    rounds: int = Field(default=20, ge=1)
    pixels: int = Field(default=20, ge=1)


class SPSA(AttackOptions):
    """Gradients estimated from answers alone, L-infinity (Uesato et al. 2018).

    Attributes:
        epsilon: the budget.
        steps, learning_rate: of Adam.
        samples: pairs of answers asked for in each step.
    """

    kind: Literal["spsa"]
    epsilon: Pixels
    steps: int = Field(default=10, ge=1)
    samples: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=0.01, gt=0)


AttackConfig = Annotated[
    FGSM | IterativeAttack | MinimalAttack | DDN | DeepFool | FAB | SpatialTransform | LocalSearch | SPSA,
    Field(discriminator="kind"),
]
