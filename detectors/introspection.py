"""Introspection: an error estimator on a map of the hidden activations.

Source: A. Pardo et al., "Coloring the black box: visualizing neural network behavior with a self-introspective
model" (2019), sections 2.3-2.10.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from askance.detectors import infovae
from askance.detectors.detector import CHANCE_MARGIN, ExplainedByOptions
from askance.detectors.infovae import WIDTH, InfoVAE, dense
from askance.detectors.ranks import leads
from askance.detectors.spool import spool
from askance.detectors.statistics import auroc, neighbor_vote
from askance.detectors.tap import EMPTY_STREAM, Capture, CaptureStream
from askance.errors import DataError
from askance.screening.kinds.introspection import ERROR_FLOOR, IntrospectionOptions
from askance.screening.options import Options
from askance.screening.reading import Reading

SCALE_FLOOR = 1e-3  # of a unit's standard deviation, relative to the mean one: nearly silent units stay quiet
VALIDATION_SHARE = 0.1
FEWEST_INPUTS = 20  # to fit on
BATCH_SIZE = 128  # of the autoencoder (paper, section 2.6)
ESTIMATOR_BATCH_SIZE = 32
NEIGHBORS = 15  # that vote on the activation map


def log_error(logits: Tensor, labels: Tensor) -> Tensor:
    """log10 e with e = 1/2 ||onehot(y) - softmax(o)||^2, clamped at 1e-6: [B, K], [B] -> [B]."""
    difference = F.one_hot(labels, logits.shape[1]) - logits.softmax(dim=1)
    return (0.5 * (difference**2).sum(dim=1)).clamp_min(ERROR_FLOOR).log10()


def declared_margin(logits: Tensor) -> Tensor:
    """The classifier's own confidence: log of the difference of the two greatest logits, [B, K] -> [B].

    An attack that stops at the decision boundary leaves next to none, one that goes on leaves more than any clean image
    has: untypical either way. The logarithm gives both tails a scale.
    """
    return leads(logits).clamp_min(torch.finfo(logits.dtype).tiny).log().to(logits.dtype)


def _labels(capture: Capture) -> Tensor:
    if capture.labels is None:
        raise DataError("the error estimator learns from labelled inputs: this stream has no labels")
    return capture.labels


class Introspection(ExplainedByOptions[IntrospectionOptions]):
    """Suspicion by estimated error: score = log10 of the error expected of activations like these.

    Components: `estimated_error` (the score), `estimated_error:latent` or `:hidden` (the other estimator's),
    `reconstruction_error`, log10 of the mean squared residual of the standardised activations, and `declared_margin`.
    """

    kind: ClassVar[str] = IntrospectionOptions.kind
    options_class: ClassVar[type[Options]] = IntrospectionOptions
    mean: Tensor
    scale: Tensor
    class_means: Tensor

    def __init__(self, options: IntrospectionOptions) -> None:
        super().__init__(options)
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("scale", torch.empty(0))
        self.register_buffer("class_means", torch.empty(0))
        self.autoencoder = InfoVAE(1, options.latent_dimensions)
        self.latent_estimator = dense(options.latent_dimensions, 1)
        self.hidden_estimator = dense(WIDTH, 1)

    @property
    def is_fitted(self) -> bool:
        """Whether the networks are trained."""
        return self.mean.numel() > 0

    def _concatenated(self, capture: Capture) -> Tensor:
        return torch.cat([capture.flat(layer) for layer in self.layers], dim=1).float()

    def standardised(self, capture: Capture) -> Tensor:
        """h in units of the fit split's standard deviations, [B, D_h]."""
        return (self._concatenated(capture) - self.mean) / self.scale

    def fit(self, clean: CaptureStream, held_out: CaptureStream | None = None) -> Self:
        """Train the autoencoder on `clean`, then the estimators; gradients never cross from one to the next.

        Args:
            clean: Captures with labels.
            held_out: Captures with labels of inputs that the classifier was not trained on, for the estimators: its
                errors on its own training set are far smaller than on unseen data. Without it `clean` serves.

        Raises:
            DataError: labels are missing, or there are too few inputs to validate on.
        """
        h, targets, classes = self._features(clean)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.seed)
            self.autoencoder = InfoVAE(h.shape[1], self.options.latent_dimensions)
            self.latent_estimator = dense(self.options.latent_dimensions, 1)
            self.hidden_estimator = dense(WIDTH, 1)
        generator = torch.Generator().manual_seed(self.options.seed)
        self._standardise_by(h)
        self._train_autoencoder(h, generator)
        self.class_means = self._latent_class_means(h, classes)
        if held_out is not None:
            h, targets, _ = self._features(held_out)
        self._train_estimators(h, targets, generator)
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        return self.eval()

    @torch.no_grad()
    def _features(self, stream: CaptureStream) -> tuple[Tensor, Tensor, Tensor]:
        h, targets, classes = spool(
            stream,
            self._concatenated,
            lambda capture: log_error(capture.logits, _labels(capture)),
            lambda capture: F.one_hot(_labels(capture), capture.logits.shape[1]).to(torch.uint8),
        )
        return h, targets, classes

    def _standardise_by(self, h: Tensor) -> None:
        blocks, start = h.split(4096), torch.zeros(h.shape[1], dtype=torch.float64)
        mean = sum((block.double().sum(dim=0) for block in blocks), start) / h.shape[0]
        variance = sum((((block - mean) ** 2).sum(dim=0) for block in blocks), start) / h.shape[0]
        self.mean, deviation = mean.to(h.dtype), variance.sqrt().to(h.dtype)
        if not bool((deviation > 0).any()):
            raise DataError(f"layers {list(self.layers)} are the same for every input: nothing to learn from")
        self.scale = deviation.clamp_min(SCALE_FLOOR * float(deviation.mean()))

    def _split(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        validation = round(VALIDATION_SHARE * count)
        if count < FEWEST_INPUTS:
            raise DataError(f"introspection needs at least {FEWEST_INPUTS} inputs to fit and validate on, got {count}")
        order = torch.randperm(count, generator=generator)
        return order[validation:].sort().values, order[:validation].sort().values

    def _train_autoencoder(self, h: Tensor, generator: torch.Generator) -> None:
        training, validation = self._split(h.shape[0], generator)
        weight = self.options.discrepancy_weight
        infovae.train(
            self.autoencoder,
            lambda rows: self.autoencoder.loss((h[rows] - self.mean) / self.scale, weight, generator),
            training,
            validation,
            batch_size=BATCH_SIZE,
            generator=generator,
            **self._schedule(),
        )

    @torch.no_grad()
    def _latent_class_means(self, h: Tensor, classes: Tensor) -> Tensor:
        """E[z | class], [K, z] (Eq. 7); a class without inputs gets the origin, the prior's mean."""
        sums = torch.zeros(classes.shape[1], self.options.latent_dimensions)
        for block, one_hot in zip(h.split(4096), classes.split(4096), strict=True):
            sums += one_hot.T.float() @ self._encode((block - self.mean) / self.scale)[1]
        return sums / classes.sum(dim=0, dtype=torch.long).clamp_min(1).unsqueeze(1)

    def with_longer_training(self, clean: CaptureStream, times: int) -> Self:
        """A copy whose estimator on z has learned anew, for so many times as many cycles, and of patience: of two
        numbers the few errors among many answers without any are learned late.

        Args:
            clean: Captures with labels, as of `fit`'s `held_out`.
            times: how much longer.

        Raises:
            DataError: labels are missing, or there are too few inputs to validate on.
        """
        made, options = copy.deepcopy(self), self.options
        longer = {"cycles": times * options.cycles, "patience": times * options.patience}
        made.options = options.model_copy(update=longer)
        h, targets, _ = made._features(clean)
        generator = torch.Generator().manual_seed(options.seed)
        _, latent = made._encoded(h)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            made.latent_estimator = dense(options.latent_dimensions, 1)
        training, validation = made._split(h.shape[0], generator)
        made._train_estimator(made.latent_estimator, latent, targets, training, validation, generator)
        return made

    def _train_estimators(self, h: Tensor, targets: Tensor, generator: torch.Generator) -> None:
        hidden, latent = self._encoded(h)
        training, validation = self._split(h.shape[0], generator)
        for estimator, inputs in ((self.latent_estimator, latent), (self.hidden_estimator, hidden)):
            self._train_estimator(estimator, inputs, targets, training, validation, generator)

    def _train_estimator(
        self,
        estimator: torch.nn.Module,
        inputs: Tensor,
        targets: Tensor,
        training: Tensor,
        validation: Tensor,
        generator: torch.Generator,
    ) -> None:
        infovae.train(
            estimator,
            lambda rows: 0.5 * F.mse_loss(estimator(inputs[rows]).squeeze(1), targets[rows]),
            training,
            validation,
            batch_size=ESTIMATOR_BATCH_SIZE,
            generator=generator,
            **self._schedule(),
        )

    def _schedule(self) -> dict[str, Any]:
        return self.options.model_dump(include={"cycles", "cycle_steps", "peak_learning_rate", "patience"})

    @torch.no_grad()
    def _encoded(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The last hidden layer and z of activations as they come, [N, D_h], possibly on disk."""
        blocks = [self._encode((block - self.mean) / self.scale) for block in h.split(4096)]
        hidden, latent = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        return hidden, latent

    def _encode(self, standardised: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.autoencoder.hidden(standardised)
        return hidden, self.autoencoder.project(hidden)

    def map_points(self, capture: Capture) -> Tensor:
        """The activation map: z of each input, [B, z].

        Raises:
            NotFittedError: before `fit`.
        """
        self.require_fitted()
        return self._encode(self.standardised(capture))[1]

    def estimate_at(self, points: Tensor) -> Tensor:
        """Log10 estimated error at points of the latent space, [N, z] -> [N]: the map's background.

        Raises:
            NotFittedError: before `fit`.
        """
        self.require_fitted()
        estimate: Tensor = self.latent_estimator(points)
        return estimate.squeeze(1)

    def expected_activations(self) -> Tensor:
        """E[h | class] = decoder(E[z | class]), standardised units, [K, D_h] (Eq. 9).

        Raises:
            NotFittedError: before `fit`.
        """
        self.require_fitted()
        return self.autoencoder.decode(self.class_means)

    @torch.no_grad()
    def diagnose(self, clean: CaptureStream, held_out: CaptureStream) -> dict[str, Any]:
        """How well the activation map separates classes, and the estimators rank mistakes.

        Returns:
            {"knn_agreement": share of held-out inputs whose 15 neighbours on the map, among `clean`, vote for their
            predicted class, "misclassification_auroc:<component>": AUROC of the classifier's mistakes, where it makes
            some but not only such, "mistakes": how many}.
        """
        known = [(self.map_points(capture), capture.predicted) for capture in clean]
        points, predicted, wrong = list[Tensor](), list[Tensor](), list[Tensor]()
        readings: dict[str, list[Tensor]] = {}
        for capture in held_out:
            points.append(self.map_points(capture))
            predicted.append(capture.predicted)
            wrong.append(capture.predicted != _labels(capture))
            for name, values in self.components(capture).items():
                readings.setdefault(name, []).append(values)
        if not known or not points:
            raise DataError(EMPTY_STREAM)
        near, classes = (torch.cat(parts) for parts in zip(*known, strict=True))
        votes = neighbor_vote(near, classes, torch.cat(points), NEIGHBORS)
        result: dict[str, Any] = {"knn_agreement": float((votes == torch.cat(predicted)).double().mean())}
        mistaken = torch.cat(wrong)
        if 0 < mistaken.sum() < len(mistaken):
            for name, parts in readings.items():
                values = torch.cat(parts)
                result[f"misclassification_auroc:{name}"] = auroc(values[~mistaken], values[mistaken])
        return result | {"mistakes": int(mistaken.sum())}

    def doubts(self, figures: Mapping[str, Any], classes: int) -> dict[str, str]:
        """All of its layers, where the neighbours on their map agree with the classifier by chance only."""
        agreement = figures.get("knn_agreement", 1.0)
        if agreement * classes > CHANCE_MARGIN:
            return {}
        why = f"neighbours on the activation map agree with the classifier on {agreement:.1%}"
        return dict.fromkeys(self.layers, f"{why}, chance is {1 / classes:.1%}")

    def read(self, capture: Capture) -> Reading[Tensor]:
        """Both error estimates and the reconstruction error."""
        self.require_fitted()
        h = self.standardised(capture)
        hidden, z = self._encode(h)
        by_hidden = self.hidden_estimator(hidden).squeeze(1)
        by_latent = self.latent_estimator(z).squeeze(1)
        residual = ((self.autoencoder.decode(z) - h) ** 2).mean(dim=1)
        reconstruction = residual.clamp_min(torch.finfo(h.dtype).tiny).log10()
        if self.options.estimator_reads == "hidden":
            score, other, other_name = by_hidden, by_latent, "latent"
        else:
            score, other, other_name = by_latent, by_hidden, "hidden"
        components = {
            "estimated_error": score,
            f"estimated_error:{other_name}": other,
            "reconstruction_error": reconstruction,
            "declared_margin": declared_margin(capture.logits),
        }
        evidence = {"point": z, "error": score, "reconstruction": reconstruction}
        # An attack can leave a classifier more confident than any clean image does: a low estimate is news, too.
        return Reading(score, components, frozenset(components) - {"reconstruction_error"}, evidence)
