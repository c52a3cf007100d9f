"""Semantic signature: whether each layer still speaks for the predicted class in the language of word vectors.

Source: "Using word embeddings to explore the learned representations of convolutional neural networks" (2019),
sections 3.3, 4 and 5.3; the signature itself is its proposed detector.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from askance.detectors.detector import ExplainedByOptions, Inputs
from askance.detectors.leaving_out import Rows, leads, matches
from askance.detectors.statistics import corrected
from askance.detectors.tap import EMPTY_STREAM, Capture, CaptureStream
from askance.errors import ConfigError, DataError
from askance.screening.kinds.semantic_signature import SemanticSignatureOptions
from askance.screening.options import Options
from askance.screening.reading import Reading

FEWEST_CLASSES = 5  # three concepts must remain beside each pair
PERMUTATIONS = 1000  # of the concepts, for the null of the 2 vs 2 test
DRAWS = 5  # images per concept, one at a time, as in the paper
SHOWN = 10  # classes that an error names
MIDDLE = (0.025, 0.975)  # of the null, what 95% of it lies between
NUMBERS = 2**20  # of each table that is held at once
MOST_CONCEPTS = 100  # of the 2 vs 2 test, drawn from more classes: its null tests every pair a thousand times


def centred_unit(rows: Tensor) -> Tensor:
    """Rows centred and scaled to unit length, [..., D]: dot products are then Pearson correlations (0 if constant)."""
    return F.normalize(rows - rows.mean(dim=-1, keepdim=True), dim=-1)


def correlations(rows: Tensor) -> Tensor:
    """Pearson correlation of every pair of rows, [..., w, n] -> [..., w, w] (C_D and C_I)."""
    unit = centred_unit(rows)
    return unit @ unit.mT


def two_versus_two(image: Rows, word: Rows) -> Tensor:
    """The 2 vs 2 test of every pair of concepts, bool [..., w(w-1)/2] in the order of `torch.combinations`.

    Both columns of the pair are dropped; it passes if the matched correlations sum to more than the crossed ones
    (paper, Eqs. 1 and 2). The mean is the layer's 2-vs-2 accuracy; chance is one half.

    Args:
        image: the rows of C_I, [..., w, w].
        word: those of C_D, [..., w, w]; leading dimensions are broadcast.

    Raises:
        DataError: fewer than four concepts (two columns must remain to correlate).
    """
    count = word.centred.shape[-1]
    if count < 4:
        raise DataError(f"the 2 vs 2 test needs at least 4 concepts, got {count}")
    above = torch.triu_indices(count, count, offset=1)
    return matches(image, word)[..., above[0], above[1]]


def over_layers(tests: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The p-values of `SemanticSignature.semantic_tests`, corrected for the number of layers, {layer: p}."""
    p_values = torch.tensor([one["p_value"] for one in tests.values()], dtype=torch.float64)
    return dict(zip(tests, corrected(p_values).tolist(), strict=True))


def _labels(capture: Capture) -> Tensor:
    if capture.labels is None:
        raise DataError("reference activations come from labelled inputs: this stream has no labels")
    return capture.labels


def _activations(stream: CaptureStream, layers: Iterable[str], rows: Tensor) -> dict[str, Tensor]:
    """The activations of some rows of a stream, in their order, {layer: float64 [N, D_l]}: one walk."""
    found: dict[str, dict[int, Tensor]] = {layer: {} for layer in layers}
    wanted, start = set(rows.tolist()), 0
    for capture in stream:
        here = sorted(row - start for row in wanted if start <= row < start + len(capture))
        for layer, kept in found.items():
            kept.update(zip((start + i for i in here), capture.flat(layer)[here].double().cpu(), strict=True))
        start += len(capture)
    return {layer: torch.stack([kept[row] for row in rows.tolist()]) for layer, kept in found.items()}


class SemanticSignature(ExplainedByOptions[SemanticSignatureOptions]):
    """Suspicion by an untypical 1-vs-2 profile: score = the regularised Mahalanobis distance of the layer margins.

    For an input of predicted class p and each other class q, the margin of a layer is corr(i, C_D[p]) - corr(i, C_D[q])
    with i the correlations of its activation with the reference concepts, p and q left out; the 1 vs 2 test passes if
    it is positive. The signature is the mean over q, per layer; what is typical is learned per predicted class.

    Components: `untypicality`, the score. The layers' own margins are evidence, not components: each alone tells clean
    from attacked no better than chance (AUROC .41 to .49 on digits), so fusion would only be diluted.
    """

    kind: ClassVar[str] = SemanticSignatureOptions.kind
    options_class: ClassVar[type[Options]] = SemanticSignatureOptions
    word_correlations: Tensor
    counts: Tensor
    sums: Tensor
    products: Tensor
    centred: Tensor
    totals: Tensor
    inverses: Tensor
    means: Tensor
    precision: Tensor

    def __init__(self, options: SemanticSignatureOptions, word_vectors: Tensor | None = None) -> None:
        """Take the options and, to fit, the classes' word vectors D [K, n] in the order of the classes."""
        super().__init__(options)
        if word_vectors is not None and word_vectors.shape[0] < FEWEST_CLASSES:
            raise DataError(
                f"the semantic signature takes {FEWEST_CLASSES} classes or more, got {word_vectors.shape[0]}: leave it "
                "out of the config"
            )
        self.register_buffer(
            "word_correlations",
            torch.empty(0) if word_vectors is None else correlations(word_vectors.float()),
        )
        for i in range(len(options.semantic_layers)):
            self.register_buffer(f"references_{i}", torch.empty(0))
        self.register_buffer("counts", torch.empty(0))
        self.register_buffer("sums", torch.empty(0))
        self.register_buffer("products", torch.empty(0))
        for name in ("centred", "totals", "inverses", "means", "precision"):
            self.register_buffer(name, torch.empty(0), persistent=False)

    @classmethod
    def create(cls, options: SemanticSignatureOptions, inputs: Inputs) -> Self:
        """With the classes' word vectors.

        Raises:
            ConfigError: there are none.
            DataError: there are too few classes.
        """
        if inputs.word_vectors is None:
            raise ConfigError(
                'the semantic signature goes by word vectors: add [word_vectors] file = "..." to the config'
            )
        return cls(options, inputs.word_vectors)

    @property
    def is_fitted(self) -> bool:
        """Whether references and typical signatures are learned."""
        return self.counts.numel() > 0

    def references(self, layer: str) -> Tensor:
        """The reference activations I of a layer as centred unit rows, [K, D_l]."""
        reference: Tensor = getattr(self, f"references_{self.layers.index(layer)}")
        return reference

    @torch.no_grad()
    def fit(self, clean: CaptureStream, held_out: CaptureStream | None = None) -> Self:  # noqa: ARG002
        """Average the reference activations, then learn the typical signature of each class: two walks.

        Raises:
            DataError: no word vectors, or their number is not the number of classes, no labels, or a class without a
                single correctly classified input.
        """
        return self._collect_references(clean).observe(clean)

    def _collect_references(self, stream: CaptureStream) -> Self:
        classes = self.word_correlations.shape[0]
        if classes == 0:
            raise DataError("the semantic signature is fitted with word vectors: pass word_vectors, one row per class")
        sums: list[Tensor] = []
        taken = torch.zeros(classes, dtype=torch.long)
        for capture in stream:
            labels = _labels(capture)
            if capture.logits.shape[1] != classes:
                raise DataError(f"{classes} word vectors for {capture.logits.shape[1]} classes: expected one each")
            if not sums:
                sums = [
                    capture.activations[layer][0].new_zeros(classes, capture.flat(layer).shape[1])
                    for layer in self.layers
                ]
            correct = F.one_hot(labels, classes) * (capture.predicted == labels).unsqueeze(1)
            # The first `images_per_concept` of each class, in data order.
            use = correct * ((correct.cumsum(dim=0) + taken.to(correct.device)) <= self.options.images_per_concept)
            taken += use.sum(dim=0).cpu()
            for layer, total in zip(self.layers, sums, strict=True):
                total.addmm_(use.T.to(total.dtype), capture.flat(layer))
            if bool((taken >= self.options.images_per_concept).all()):
                break
        if bool((taken == 0).any()):
            missing = torch.nonzero(taken == 0).flatten().tolist()
            shown = f"{missing[:SHOWN]}" + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
            raise DataError(
                f"no correctly classified input of class {shown}: every class needs at least one reference image"
            )
        for i, total in enumerate(sums):
            setattr(self, f"references_{i}", centred_unit(total / taken.to(total).unsqueeze(1)))
        layers = len(self.layers)
        self.counts = torch.zeros(classes, dtype=torch.float64)
        self.sums = torch.zeros(classes, layers, dtype=torch.float64)
        self.products = torch.zeros(layers, layers, dtype=torch.float64)
        self.prepare()
        return self

    @torch.no_grad()
    def observe(self, stream: CaptureStream) -> Self:
        """Add the stream's margins to the statistics of typical signatures, by predicted class; shards `merge`."""
        for capture in stream:
            margins = self.margins(capture)[0].double()
            one_hot = F.one_hot(capture.predicted, self.counts.shape[0]).double()
            self.counts += one_hot.sum(dim=0)
            self.sums += one_hot.T @ margins
            self.products += margins.T @ margins
        self.prepare()
        return self

    def merge(self, other: SemanticSignature) -> Self:
        """Add the statistics that `other` observed on another shard with the same references."""
        if any(not torch.equal(self.references(layer), other.references(layer)) for layer in self.layers):
            raise DataError("these signatures hold different references: collect once, then observe on every shard")
        self.counts, self.sums = self.counts + other.counts, self.sums + other.sums
        self.products = self.products + other.products
        self.prepare()
        return self

    def prepare(self) -> None:
        """Tabulate the concepts without each pair of classes, and the typical signatures."""
        self.centred, self.totals, self.inverses = Rows.of(self.word_correlations)
        count = self.counts.sum()
        if not count:
            return
        # A class never predicted has no typical signature of its own: it is measured from the overall one.
        own_means = self.sums / self.counts.clamp_min(1).unsqueeze(1)
        self.means = torch.where((self.counts > 0).unsqueeze(1), own_means, self.sums.sum(dim=0) / count)
        scatter = self.products - (self.means * self.counts.unsqueeze(1)).T @ self.means
        covariance = scatter / (count - 1).clamp_min(1)
        diagonal = torch.diag(covariance.diagonal().clamp_min(1e-8))
        shrinkage = self.options.shrinkage
        self.precision = torch.linalg.pinv((1 - shrinkage) * covariance + shrinkage * diagonal, hermitian=True)

    def pair_margins(self, capture: Capture) -> Tensor:
        """The margin of the predicted class p over each other class q, float64 [B, L, K], 0 at p itself.

        The 1 vs 2 test of p against q passes where it is positive.
        """
        similarities = []
        for layer in self.layers:
            references = self.references(layer)
            similarities.append(centred_unit(capture.flat(layer).to(references.dtype)) @ references.T)  # i, [B, K]
        words = Rows(self.centred, self.totals, self.inverses)
        return leads(torch.stack(similarities, dim=1), capture.predicted, words)

    def margins(self, capture: Capture) -> tuple[Tensor, Tensor]:
        """Mean margin and mean 1-vs-2 outcome over all classes q != p, each float32 [B, L]."""
        margins = self.pair_margins(capture)
        rivals = margins.shape[2] - 1
        return (margins.sum(dim=2) / rivals).float(), ((margins > 0).sum(dim=2) / rivals).float()

    @torch.no_grad()
    def diagnose(self, clean: CaptureStream, held_out: CaptureStream) -> dict[str, Any]:  # noqa: ARG002
        """2-vs-2 accuracy of every layer on images that nothing was fitted on, and the profile that is typical of them.

        Returns:
            {"layers": of `semantic_accuracy`, "one_versus_two": {layer: mean share of 1-vs-2 tests that the predicted
            class wins}, which rises with depth}.
        """
        self.require_fitted()
        accuracy = self.semantic_accuracy(held_out)
        outcomes = torch.cat([self.margins(capture)[1] for capture in held_out])
        profile = {layer: float(outcomes[:, i].mean()) for i, layer in enumerate(self.layers)}
        return {"layers": accuracy, "one_versus_two": profile}

    def semantic_accuracy(self, stream: CaptureStream, seed: int = 0) -> dict[str, dict[str, float]]:
        """2-vs-2 accuracy of every layer, with permutation p-values, corrected over layers by
        Benjamini-Hochberg-Yekutieli (paper 003, section 4.1).

        Args:
            stream: Captures with labels.
            seed: of the draws and permutations.

        Returns:
            {layer: {"two_versus_two", "p_value"}}.

        Raises:
            DataError: the stream is empty, has no labels, or shows fewer than four classes.
        """
        tests = self.semantic_tests(stream, seed)
        p_values = over_layers(tests)
        return {
            layer: {"two_versus_two": one["two_versus_two"], "p_value": p_values[layer]} for layer, one in tests.items()
        }

    @torch.no_grad()
    def semantic_tests(self, stream: CaptureStream, seed: int = 0) -> dict[str, dict[str, float]]:
        """2-vs-2 accuracy of every layer over several draws of one image per class, of 100 classes where there are
        more, beside 1,000 permutations of the concepts of the word vectors. Two walks.

        Args:
            stream: Captures with labels.
            seed: of the draws and permutations.

        Returns:
            {layer: {"two_versus_two", "p_value" (not corrected), "chance_low", "chance_high"}}; 95% of the permutations
            pass a share of the tests between the last two.

        Raises:
            DataError: the stream is empty, has no labels, or shows fewer than four classes.
        """
        labels = torch.cat([_labels(capture) for capture in stream] or [torch.empty(0, dtype=torch.long)]).cpu()
        if not len(labels):
            raise DataError(EMPTY_STREAM)
        generator = torch.Generator().manual_seed(seed)
        present = [k for k in range(len(self.word_correlations)) if bool((labels == k).any())]
        if len(present) > MOST_CONCEPTS:
            drawn = torch.randperm(len(present), generator=generator)[:MOST_CONCEPTS].sort().values
            present = [present[i] for i in drawn.tolist()]
        rows = []
        for _ in range(DRAWS):
            order = torch.randperm(len(labels), generator=generator)
            rows.append(torch.stack([order[labels[order] == k][0] for k in present]))
        shown = _activations(stream, self.layers, torch.cat(rows))
        word = Rows.of(self.word_correlations.double().cpu()[present][:, present])
        tests = DRAWS * math.comb(len(present), 2)
        orders = torch.stack([torch.randperm(len(present), generator=generator) for _ in range(PERMUTATIONS)])
        at_once = max(1, NUMBERS // (DRAWS * len(present) ** 2))  # permutations
        found = {}
        for layer in self.layers:
            draws = Rows.of(correlations(shown[layer].unflatten(0, (DRAWS, 1, len(present)))))
            passed = int(two_versus_two(draws, word).sum())
            null = torch.cat(
                [two_versus_two(draws, word.shuffled(some)).sum(dim=(0, 2)) for some in orders.split(at_once)]
            )
            low, high = (null.double() / tests).quantile(torch.tensor(MIDDLE, dtype=torch.float64)).tolist()
            found[layer] = {
                "two_versus_two": passed / tests,
                "p_value": (1 + int((null >= passed).sum())) / (PERMUTATIONS + 1),
                "chance_low": low,
                "chance_high": high,
            }
        return found

    def doubts(self, figures: Mapping[str, Any], classes: int) -> dict[str, str]:  # noqa: ARG002
        """Layers that pass no more of the 2 vs 2 tests than chance would."""
        return {
            layer: f"it passes {of_layer['two_versus_two']:.1%} of the 2 vs 2 tests, chance is 50%"
            for layer, of_layer in figures.get("layers", {}).items()
            if of_layer["two_versus_two"] <= 0.5
        }

    def read(self, capture: Capture) -> Reading[Tensor]:
        """Mahalanobis distance of the margins from what is typical for the predicted class, shared covariance."""
        self.require_fitted()
        margins, passes = self.margins(capture)
        deviation = margins.double() - self.means.index_select(0, capture.predicted)
        distance = ((deviation @ self.precision) * deviation).sum(dim=1).clamp_min(0).sqrt().to(margins.dtype)
        evidence = {"margins": margins, "passes": passes, "distance": distance}
        return Reading(distance, {"untypicality": distance}, evidence=evidence)
