"""Attacks on the classifier alone, in pixel space, eval mode, seeded: what each name of the configs runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from askance.calibration.advertorch_compat import import_advertorch
from askance.calibration.attack_options import AttackConfig
from askance.detectors.preprocessing import Preprocessing


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


Perturb = Callable[[Tensor, Tensor], Tensor]  # (images, labels or targets) -> perturbed images
_CLIP = {"clip_min": 0.0, "clip_max": 1.0}


def _cross_entropy() -> nn.Module:
    return nn.CrossEntropyLoss(reduction="sum")  # a sum, so that an image's gradient knows nothing of its batch mates


def _fgsm(predict: nn.Module, options: Any, _classes: int) -> Perturb:
    attack = import_advertorch().GradientSignAttack
    targeted = options.target_rank is not None
    whole = _of(attack(predict, _cross_entropy(), eps=options.epsilon, targeted=targeted, **_CLIP))
    return _smallest(predict, whole, targeted=targeted) if options.smallest else whole


def _smallest(predict: nn.Module, whole: Perturb, *, targeted: bool) -> Perturb:
    """The smallest of 16 equal shares of a perturbation that succeeds; where none does, the whole."""
    shares = 16

    @torch.no_grad()
    def perturb(images: Tensor, labels: Tensor) -> Tensor:
        with torch.enable_grad():
            step = whole(images, labels) - images
        found = images + step
        for share in range(shares - 1, 0, -1):
            smaller = images + share / shares * step
            answers: Tensor = predict(smaller).argmax(dim=1)
            succeeds = answers == labels if targeted else answers != labels
            found = torch.where(succeeds[:, None, None, None], smaller, found)
        return found

    return perturb


def _iterative(predict: nn.Module, options: Any, _classes: int) -> Perturb:
    library = import_advertorch()
    shared = {
        "eps": options.epsilon,
        "nb_iter": options.steps,
        "eps_iter": options.step_size,
        "targeted": options.target_rank is not None,
        **_CLIP,
    }
    if options.kind == "mim":
        return _of(library.MomentumIterativeAttack(predict, _cross_entropy(), **shared))
    return _of(library.LinfPGDAttack(predict, _cross_entropy(), rand_init=options.kind == "pgd", **shared))


def _minimal(predict: nn.Module, options: Any, classes: int) -> Perturb:
    library = import_advertorch()
    attack = library.CarliniWagnerL2Attack if options.kind == "cw" else library.ElasticNetL1Attack
    return _of(
        attack(
            predict,
            classes,
            confidence=options.confidence,
            learning_rate=options.learning_rate,
            binary_search_steps=options.searches,
            max_iterations=options.steps,
            initial_const=options.initial_weight,
            **_CLIP,
        )
    )


def _ddn(predict: nn.Module, options: Any, _classes: int) -> Perturb:
    return _of(import_advertorch().DDNL2Attack(predict, nb_iter=options.steps, **_CLIP))


def _fab(predict: nn.Module, options: Any, _classes: int) -> Perturb:
    return _of(import_advertorch().LinfFABAttack(predict, n_iter=options.steps))


def _spatial(predict: nn.Module, options: Any, classes: int) -> Perturb:
    attack = import_advertorch().SpatialTransformAttack(
        predict, classes, initial_const=options.smoothness, max_iterations=options.steps, **_CLIP
    )

    def perturb(images: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = attack.perturb(images, labels)
        # Where it finds nothing advertorch leaves a black image, which a classifier may well take for another class.
        black = found.flatten(1).amax(dim=1) == 0
        return torch.where(black[:, None, None, None], images, found)

    return perturb


def _local_search(predict: nn.Module, options: Any, _classes: int) -> Perturb:
    return _of(import_advertorch().LocalSearchAttack(predict, round_ub=options.rounds, t=options.pixels, **_CLIP))


def _spsa(predict: nn.Module, options: Any, _classes: int) -> Perturb:
    return _of(
        import_advertorch().LinfSPSAAttack(
            predict,
            options.epsilon,
            lr=options.learning_rate,
            nb_iter=options.steps,
            nb_sample=options.samples,
            max_batch_size=options.samples,
            **_CLIP,
        )
    )


def _deepfool(predict: nn.Module, options: Any, classes: int) -> Perturb:
    from foolbox.attacks.deepfool import L2DeepFoolAttack
    from foolbox.models.pytorch import PyTorchModel

    attack = L2DeepFoolAttack(steps=options.steps, candidates=classes, overshoot=options.overshoot)

    def perturb(images: Tensor, labels: Tensor) -> Tensor:
        model = PyTorchModel(predict, bounds=(0, 1), device=images.device)
        perturbed: Tensor = attack(model, images, labels, epsilons=None)[1]
        return perturbed

    return perturb


def _of(attacker: Any) -> Perturb:
    perturb: Perturb = attacker.perturb
    return perturb


_BUILDERS: dict[str, Callable[[nn.Module, Any, int], Perturb]] = {
    "fgsm": _fgsm,
    "bim": _iterative,
    "pgd": _iterative,
    "mim": _iterative,
    "cw": _minimal,
    "ead": _minimal,
    "ddn": _ddn,
    "deepfool": _deepfool,
    "fab": _fab,
    "spatial": _spatial,
    "local_search": _local_search,
    "spsa": _spsa,
}


def perturb(predict: PixelClassifier, options: AttackConfig, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Perturb every image to be misclassified, or, where the options aim, to be taken for its target.

    Args:
        predict: in pixel space.
        options: which attack, and its budget.
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
            attack = _BUILDERS[options.kind](predict, options, classes)
            return attack(images.contiguous(), labels).detach().clamp(0, 1)
    finally:
        for parameter, wanted in frozen:
            parameter.requires_grad_(wanted)
