"""Library network: novel activation patterns as reference points, and the consistency of what they predict (CPL).

Source: J. H. Lee, "Library network, a possible path to explainable neural networks" (2019), Eqs. 1-3 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from askance.detectors.detector import CHANCE_MARGIN, ExplainedByOptions
from askance.detectors.library import Library, activation_pattern
from askance.detectors.library_size import thresholds_for
from askance.detectors.ranks import TIE
from askance.detectors.short_list import ShortList, is_large
from askance.detectors.tap import EMPTY_STREAM, Capture, CaptureStream
from askance.detectors.tensors import generator, rounded
from askance.errors import BundleError, DataError, LayerError
from askance.screening.kinds.library_network import LibraryNetworkOptions
from askance.screening.options import Options
from askance.screening.reading import Reading, Rows

LOOKED_UP = 512  # inputs that short lists are tried on
FEWEST_ROWS = 2  # a library of no more tells nothing from anything
DECIMALS = 6  # of cosines: most clean inputs differ by less than float32's noise, which ranks would take for news
STEP = 10.0**-DECIMALS + torch.finfo(torch.float32).eps  # from one such number to the next, in float32


class LibraryNetwork(ExplainedByOptions[LibraryNetworkOptions]):
    """Suspicion by disagreement between the layers' library networks: score = 1 - CPL, in [0, 2].

    Components: `discord:<a>~<b>`, one minus the cosine of each pair of layers (Eq. 5): which layers disagree; and
    `novelty:<layer>`, one minus the greatest similarity to a stored pattern.
    """

    kind: ClassVar[str] = LibraryNetworkOptions.kind
    options_class: ClassVar[type[Options]] = LibraryNetworkOptions

    def __init__(self, options: LibraryNetworkOptions) -> None:
        super().__init__(options)
        thresholds = options.thresholds or dict.fromkeys(options.layers, math.nan)  # until they are settled
        self.libraries = nn.ModuleList(Library(threshold) for threshold in thresholds.values())

    @property
    def is_fitted(self) -> bool:
        """Whether the libraries hold rows and connections."""
        return all(library.connections.numel() > 0 for library in self.layer_libraries().values())

    def layer_libraries(self) -> dict[str, Library]:
        """The library of each layer."""
        return {
            layer: library
            for layer, library in zip(self.layers, self.libraries, strict=True)
            if isinstance(library, Library)
        }

    def sizes(self) -> dict[str, int]:
        """Library size (stored rows) of each layer."""
        return {layer: library.rows.shape[0] for layer, library in self.layer_libraries().items()}

    def fit(self, clean: CaptureStream, held_out: CaptureStream | None = None) -> Self:
        """Build the libraries in data order, then their functional connections: two walks of the stream.

        One more before them, if the thresholds are still to be found. Large libraries get short lists in the end.
        """
        self.settle(clean)
        return self.build(clean).connect(clean).shorten(held_out or clean)

    @torch.no_grad()
    def settle(self, sample: CaptureStream, of: int | None = None) -> None:
        """Find the thresholds by which the libraries have about as many rows as `options.rows` says.

        Raises:
            DataError: there are fewer inputs than rows.
        """
        if not self.options.sizes:
            return
        # by other neurons than those that nobody is to know: the thresholds are, and are found again on --resume
        seed = 0 if self.options.seed is None else self.options.seed
        thresholds = thresholds_for(self.options.sizes, sample, of, self.options.sampled_neurons, seed)
        self.options = self.options.model_copy(update={"thresholds": thresholds, "rows": None, "library_layers": None})
        for library, threshold in zip(self.layer_libraries().values(), thresholds.values(), strict=True):
            library.threshold = threshold

    @torch.no_grad()
    def build(self, stream: CaptureStream) -> Self:
        """Store the novel patterns of every layer, in data order; labels play no part.

        Raises:
            DataError: the stream is empty.
            LayerError: a layer is zero for every input.
        """
        drawn = generator(self.options.seed)
        libraries = self.layer_libraries()
        started, fired = False, dict.fromkeys(libraries, False)
        for capture in stream:
            for layer, library in libraries.items():
                activation = capture.flat(layer)
                if not started:
                    library.begin(activation, self.options.sampled_neurons, drawn)
                patterns = library.patterns(activation)
                if library.rows.numel() == 0:
                    library.rows = patterns.new_empty(0, patterns.shape[1])
                fired[layer] = fired[layer] or bool((patterns != 0).any())
                library.extend(patterns)
            started = True
        if not started:
            raise DataError(EMPTY_STREAM)
        for layer, library in libraries.items():
            if not fired[layer]:
                raise LayerError(f"layer {layer!r} is zero for every input: it never fires; tap another layer")
            library.seal()
        return self

    @torch.no_grad()
    def connect(self, stream: CaptureStream) -> Self:
        """Add the stream's share of the functional connections; over shards, `merge` adds the shares up."""
        for capture in stream:
            for layer, library in self.layer_libraries().items():
                library.connect(library.patterns(capture.flat(layer)), capture.predicted, capture.logits.shape[1])
        return self

    @torch.no_grad()
    def shorten(self, stream: CaptureStream) -> Self:
        """Give large libraries a short list that finds the nearest rows of this stream's first inputs."""
        large = {layer: library for layer, library in self.layer_libraries().items() if is_large(library.rows)}
        for layer, patterns in self._some_patterns(stream, large).items():
            library = large[layer]
            library.short_list = ShortList.of(library.rows, patterns, self.options.neighbors + 1)
        return self

    def _some_patterns(self, stream: CaptureStream, libraries: Mapping[str, Library]) -> dict[str, Tensor]:
        """Of the first inputs, [LOOKED_UP, D] by layer."""
        parts: dict[str, list[Tensor]] = {layer: [] for layer in libraries}
        count = 0
        for capture in stream if libraries else ():
            for layer, library in libraries.items():
                parts[layer].append(library.patterns(capture.flat(layer)))
            count += len(capture)
            if count >= LOOKED_UP:
                break
        return {layer: torch.cat(of_layer)[:LOOKED_UP] for layer, of_layer in parts.items()}

    def prepare(self) -> None:
        """Work out what each short list derives."""
        for library in self.layer_libraries().values():
            library.short_list.settle()

    def merge(self, other: LibraryNetwork) -> Self:
        """Add the functional connections that `other` summed over another shard against the same rows.

        Raises:
            BundleError: the two do not hold the same rows.
        """
        mine, theirs = self.layer_libraries(), other.layer_libraries()
        if mine.keys() != theirs.keys() or any(not torch.equal(mine[layer].rows, theirs[layer].rows) for layer in mine):
            raise BundleError("these library networks hold different rows: build once, then connect on every shard")
        for layer, library in mine.items():
            library.connections = library.connections + theirs[layer].connections
        return self

    def answers(self, capture: Capture) -> tuple[Tensor, Tensor]:
        """Every layer's prediction-node inputs P (Eq. 3), [B, L, K], and greatest similarity, [B, L].

        Raises:
            NotFittedError: before `fit`.
        """
        answers, similarity, _ = self._answers(capture)
        return answers, similarity

    def _answers(self, capture: Capture) -> tuple[Tensor, Tensor, Tensor]:
        """The answers, and whether a tie decided on them, [B, L] bool.

        Raises:
            NotFittedError: before `fit`.
        """
        self.require_fitted()
        neighbors = self.options.neighbors
        predictions, similarities = [], []
        for layer, library in self.layer_libraries().items():
            nearest, rows = library.nearest(capture.flat(layer), neighbors + 1)
            predictions.append(library.predict(nearest[:, :neighbors], rows[:, :neighbors]))
            missing = neighbors + 1 - nearest.shape[1]  # what is not there is tied with nothing
            similarities.append(F.pad(nearest, (0, missing), value=-torch.inf) if missing else nearest)
        answers, similarity = torch.stack(predictions, dim=1), torch.stack(similarities, dim=1)
        tied = similarity[:, :, neighbors - 1] - similarity[:, :, neighbors] < TIE
        return answers.softmax(dim=2) if self.options.softmax else answers, similarity[:, :, 0], tied

    def read(self, capture: Capture) -> Reading[Tensor]:
        """Score 1 - CPL (Eq. 5: the mean cosine between P of every pair of layers, no centring)."""
        answers, similarity, tied = self._answers(capture)
        cosines = rounded(pair_cosines(answers), DECIMALS).to(similarity.dtype)
        similarity = rounded(similarity, DECIMALS)
        names = [f"discord:{a}~{b}" for a, b in combinations(self.layers, 2)]
        names += [f"novelty:{layer}" for layer in self.layers]
        components = Rows(names, (1 - torch.cat([cosines, similarity], dim=1)).T)
        evidence = {"answer": answers.argmax(dim=2), "similarity": similarity, "cpl": cosines.mean(dim=1)}
        return Reading(1 - cosines.mean(dim=1), components, evidence=evidence, tied=tied.any(dim=1), step=STEP)

    @torch.no_grad()
    def diagnose(self, clean: CaptureStream, held_out: CaptureStream) -> dict[str, Any]:  # noqa: ARG002
        """The libraries' agreement with the classifier, the share of the nearest rows that short lists find, and the
        confusion index (None where it is undefined).
        """
        short = {layer: library for layer, library in self.layer_libraries().items() if len(library.short_list)}
        recall = {
            layer: short[layer].short_list.recall(short[layer].rows, patterns, self.options.neighbors + 1)
            for layer, patterns in self._some_patterns(held_out, short).items()
        }
        return {
            "layers": self.agreement(held_out),
            **({"recall": recall} if recall else {}),
            "confusion_index": self.confusion(held_out),
        }

    def confusion(self, stream: CaptureStream) -> dict[str, list[list[float | None]]]:
        """The confusion index by layer, as plain data: None where it is undefined."""
        index = self.confusion_index(stream).tolist()
        return {
            layer: [[None if math.isnan(v) else round(v, 6) for v in row] for row in rows]
            for layer, rows in zip(self.layers, index, strict=True)
        }

    def doubts(self, figures: Mapping[str, Any], classes: int) -> dict[str, str]:
        """Layers whose library holds next to nothing, or agrees with the classifier by chance only."""
        found = {}
        for layer, of_layer in figures.get("layers", {}).items():
            rows, agreement = of_layer["rows"], of_layer["top1"]
            if rows <= FEWEST_ROWS:
                patterns = "1 pattern" if rows == 1 else f"{rows} patterns"
                threshold = self.layer_libraries()[layer].threshold
                found[layer] = f"with the threshold {threshold:g} its library holds {patterns}: raise it"
            elif agreement * classes <= CHANCE_MARGIN:
                found[layer] = f"its library agrees with the classifier on {agreement:.1%}, chance is {1 / classes:.1%}"
        return found

    @torch.no_grad()
    def agreement(self, stream: CaptureStream) -> dict[str, dict[str, float]]:
        """Share of inputs whose predicted class is each library's best answer, or among its best three.

        Returns:
            {layer: {"rows", "top1", "top3"}}, shares in [0, 1] (paper 000, Figs. 2 and 4).

        Raises:
            DataError: the stream is empty.
        """
        hits = torch.zeros(len(self.layers), 2, dtype=torch.long)
        count = 0
        for capture in stream:
            answers, _ = self.answers(capture)
            order = answers.topk(min(3, answers.shape[2]), dim=2).indices
            match = order == capture.predicted[:, None, None]
            hits += torch.stack([match[:, :, 0].sum(dim=0), match.any(dim=2).sum(dim=0)], dim=1).cpu()
            count += len(capture)
        if not count:
            raise DataError(EMPTY_STREAM)
        return {
            layer: {"rows": rows, "top1": top1 / count, "top3": top3 / count}
            for (layer, rows), (top1, top3) in zip(self.sizes().items(), hits.tolist(), strict=True)
        }

    @torch.no_grad()
    def confusion_index(self, stream: CaptureStream) -> Tensor:
        """Confusion index CI(d1, d2) = CA(d1, d2) / CA(d1, d1) of every layer (paper 000, Eq. 4).

        CA(d1, d2) sums softmax(P)_d1 softmax(P)_d2 over the inputs of true class d1 that the layer's library answers
        right.

        Returns:
            float64 [L, K, K]; NaN in rows of classes that a library never answers right.

        Raises:
            DataError: the stream is empty.
        """
        sums: Tensor | None = None
        for capture in stream:
            answers, _ = self.answers(capture)
            share = answers.double().softmax(dim=2)  # [B, L, K]
            labels = capture.predicted if capture.labels is None else capture.labels
            right = answers.argmax(dim=2) == labels[:, None]
            own = share.gather(2, labels[:, None, None].expand(-1, share.shape[1], 1)) * right[..., None]
            one_hot = F.one_hot(labels, share.shape[2]).double()
            products = torch.einsum("bd,blk->ldk", one_hot, own * share)
            sums = products if sums is None else sums + products
        if sums is None:
            raise DataError(EMPTY_STREAM)
        return sums / sums.diagonal(dim1=1, dim2=2).unsqueeze(2)


def pair_cosines(answers: Tensor) -> Tensor:
    """Cosine between P of every pair of layers i < j, [B, L, K] -> [B, L(L-1)/2]; 0 where a P is zero."""
    unit = activation_pattern(answers.flatten(0, 1)).view_as(answers)
    first, second = torch.triu_indices(answers.shape[1], answers.shape[1], offset=1, device=answers.device)
    return torch.sum(unit[:, first] * unit[:, second], dim=2)
