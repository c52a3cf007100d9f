"""The losses of a classifier that is attacked as it learns, and the attacks that they are of.

Sources: A. Madry et al., "Towards deep learning models resistant to adversarial attacks" (2018), Eq. 2.1; E. Wong et
al., "Fast is better than free" (2020), one step from a random start; H. Zhang et al., "Theoretically principled
trade-off between robustness and accuracy" (2019), Eq. 5; Y. Dong et al., "Towards interpretable deep neural networks by
leveraging adversarial examples" (2019), the consistent loss, of which the abstract tells no more than the name: that
it is relative and leaves the usual image's activations alone, and its weights, are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from askance.calibration.config import HardeningConfig
from askance.detectors import Tap
from askance.detectors.tap import Capture

ONE_STEP, ALL_STEPS = 1.25, 2.5  # of the budget: the length of an only step (Wong), and of all together (Madry)
SHORTEST = 1e-12  # of what is divided by


def loss_of(tap: Tap, images: Tensor, labels: Tensor, options: HardeningConfig, epsilon: float) -> Tensor:
    """The loss of a batch.

    Args:
        tap: of the classifier, of the layers that are to be consistent; left in training mode.
        images: float32 [B, C, H, W] in [0, 1].
        labels: [B].
        options: which loss, and how many steps of an attack.
        epsilon: the attack's budget by now.
    """
    if options.method == "trades":
        with torch.no_grad():
            usual = _at_rest(tap, images).softmax(dim=1)
        attacked = attack(tap, images, lambda logits: _divergence(logits, usual), options.steps, epsilon)
    else:
        attacked = attack(
            tap, images, lambda logits: F.cross_entropy(logits, labels, reduction="sum"), options.steps, epsilon
        )
    tap.module.train()
    if options.method == "adversarial":
        return F.cross_entropy(tap.classify(attacked), labels)
    both = tap(torch.cat([images, attacked]))
    usual, moved = both.logits.chunk(2)
    if options.method == "trades":
        return F.cross_entropy(usual, labels) + options.trades_weight * _divergence(moved, usual.softmax(1)) / len(
            labels
        )
    halves = (F.cross_entropy(usual, labels) + F.cross_entropy(moved, labels)) / 2
    return halves + options.consistency_weight * torch.stack([*strayed(both).values()]).sum(dim=0).mean()


def attack(tap: Tap, images: Tensor, goal: Callable[[Tensor], Tensor], steps: int, epsilon: float) -> Tensor:
    """Images moved, within a budget, up a goal of the logits, by sign from a random start.

    The classifier is as it answers: batch statistics, which attacked images would shift, are left as they are.
    """
    length = epsilon * (ONE_STEP if steps == 1 else ALL_STEPS / steps)
    moved = (images + epsilon * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        (slope,) = torch.autograd.grad(goal(_at_rest(tap, moved)), moved)
        further = moved.detach() + length * slope.sign()
        moved = (images + (further - images).clamp(-epsilon, epsilon)).clamp(0, 1)
    return moved.detach()


def _at_rest(tap: Tap, images: Tensor) -> Tensor:
    """The logits in eval mode, in which the classifier is left."""
    tap.module.eval()
    return tap.classify(images)


def _divergence(logits: Tensor, usual: Tensor) -> Tensor:
    """KL(usual || softmax(logits)), summed over the batch."""
    return F.kl_div(logits.log_softmax(dim=1), usual, reduction="sum")


def strayed(both: Capture) -> Mapping[str, Tensor]:
    """|phi(x*) - phi(x)|^2 / |phi(x)|^2 of each layer phi, {layer: [B]}; only what is attacked is to change by it.

    Args:
        both: the Capture of B images as they were, and of the B attacked ones.
    """
    found = {}
    for layer in both.activations:
        usual, moved = both.flat(layer).chunk(2)
        usual = usual.detach()
        found[layer] = (moved - usual).square().sum(dim=1) / usual.square().sum(dim=1).clamp_min(SHORTEST)
    return found
