"""Semantic signature: 2-vs-2 by hand, 1-vs-2 against a naive loop, the profile and its untypicality."""

from __future__ import annotations

import copy
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import Trained, auroc, capture_of, split

from askance.detectors import Capture, SemanticSignature, SemanticSignatureOptions
from askance.detectors.leaving_out import Rows
from askance.detectors.semantic_signature import correlations, two_versus_two
from askance.errors import DataError, NotFittedError

CLASSES = 6


def pearson(a: Any, b: Any) -> float:
    return float(np.corrcoef(np.asarray(a, dtype=float), np.asarray(b, dtype=float))[0, 1])


def words(seed: int = 0, classes: int = CLASSES) -> Tensor:
    return torch.randn(classes, 10, generator=torch.Generator().manual_seed(seed))


def signature(word_vectors: Tensor | None = None, **options: Any) -> SemanticSignature:
    chosen = {"semantic_layers": ("early", "late"), **options}
    vectors = words() if word_vectors is None else word_vectors
    return SemanticSignature(SemanticSignatureOptions.model_validate(chosen), vectors)


# The 2 vs 2 test


def test_correlations_are_pearsons() -> None:
    rows = torch.randn(4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 10
    np.testing.assert_allclose(correlations(rows).numpy(), np.corrcoef(rows.numpy()), atol=1e-12)
    flat = torch.tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]])
    assert torch.isfinite(correlations(flat)).all()
    assert correlations(flat)[0].tolist() == [0.0, 0.0]


def symmetric(upper: dict[tuple[int, int], float], count: int) -> Tensor:
    matrix = torch.eye(count, dtype=torch.float64)
    for (i, j), value in upper.items():
        matrix[i, j] = matrix[j, i] = value
    return matrix


def test_two_versus_two_by_hand() -> None:
    """Four concepts: with the pair's columns dropped two numbers remain, whose correlation is +1 or -1 by order."""
    word = symmetric({(0, 1): 0.0, (0, 2): 0.9, (0, 3): 0.1, (1, 2): 0.2, (1, 3): 0.8, (2, 3): 0.0}, 4)
    # Pair (0, 1): the remaining columns 2, 3 fall for word 0, rise for word 1.
    same = symmetric({(0, 1): 0.5, (0, 2): 0.7, (0, 3): 0.3, (1, 2): 0.1, (1, 3): 0.4, (2, 3): 0.2}, 4)
    swapped = symmetric({(0, 1): 0.5, (0, 2): 0.3, (0, 3): 0.7, (1, 2): 0.4, (1, 3): 0.1, (2, 3): 0.2}, 4)
    assert bool(two_versus_two(Rows.of(same), Rows.of(word))[0])  # 1 + 1 > -1 - 1
    assert not bool(two_versus_two(Rows.of(swapped), Rows.of(word))[0])
    both_fall = symmetric({(0, 1): 0.5, (0, 2): 0.7, (0, 3): 0.3, (1, 2): 0.8, (1, 3): 0.4, (2, 3): 0.2}, 4)
    assert not bool(two_versus_two(Rows.of(both_fall), Rows.of(word))[0])  # 1 - 1 against -1 + 1: a tie does not pass
    assert two_versus_two(Rows.of(same), Rows.of(word)).dtype == torch.bool
    assert two_versus_two(Rows.of(same), Rows.of(word)).shape == (6,)


@pytest.mark.parametrize("count", [5, 8])
def test_two_versus_two_equals_the_loop(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    image = correlations(torch.randn(count, 12, generator=generator, dtype=torch.float64))
    word = correlations(torch.randn(count, 9, generator=generator, dtype=torch.float64))
    expected = []
    for c1, c2 in combinations(range(count), 2):
        keep = [k for k in range(count) if k not in (c1, c2)]
        i1, i2, d1, d2 = image[c1, keep], image[c2, keep], word[c1, keep], word[c2, keep]
        expected.append(pearson(i1, d1) + pearson(i2, d2) > pearson(i1, d2) + pearson(i2, d1))
    assert two_versus_two(Rows.of(image), Rows.of(word)).tolist() == expected
    assert bool(two_versus_two(Rows.of(word), Rows.of(word)).all())  # representations that agree pass everywhere


def test_two_versus_two_is_at_chance_without_relation() -> None:
    accuracies = []
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        image, word = (correlations(torch.randn(10, 20, generator=generator)) for _ in range(2))
        accuracies.append(float(two_versus_two(Rows.of(image), Rows.of(word)).double().mean()))
    assert 0.42 < float(np.mean(accuracies)) < 0.58


def test_two_versus_two_needs_four_concepts() -> None:
    with pytest.raises(DataError, match="needs at least 4 concepts, got 3"):
        two_versus_two(Rows.of(torch.eye(3)), Rows.of(torch.eye(3)))


# Fitting

MIXING = {
    "early": torch.randn(10, 24, generator=torch.Generator().manual_seed(50)),
    "late": torch.randn(10, 30, generator=torch.Generator().manual_seed(51)),
}


def classes_of(count: int, seed: int) -> Tensor:
    return torch.arange(count).remainder(CLASSES)[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]


def layers_of(early: Tensor, late: Tensor, seed: int) -> dict[str, Tensor]:
    """Activations that carry the word vectors' geometry: of `early`'s classes faintly, of `late`'s clearly."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for layer, of, noise in (("early", early, 2.0), ("late", late, 1.0)):
        pure = words()[of] @ MIXING[layer]
        made[layer] = pure + noise * torch.randn(pure.shape, generator=generator)
    made["early"] = made["early"].view(len(early), 6, 2, 2)  # a feature map
    return made


def semantic(count: int, seed: int, mistakes: int = 0) -> Capture:
    labels = classes_of(count, seed)
    predicted = labels.clone()
    predicted[:mistakes] = (predicted[:mistakes] + 1) % CLASSES
    return capture_of(layers_of(labels, labels, seed), predicted.tolist(), CLASSES, labels.tolist())


@pytest.fixture(scope="module")
def fitted() -> SemanticSignature:
    return signature(images_per_concept=15).fit(split(semantic(400, 0, mistakes=30), [150, 250]))


def naive_references(data: Capture, per_concept: int) -> dict[str, np.ndarray]:
    """The mean activation of the first correctly classified images of each class."""
    assert data.labels is not None
    references = {}
    for layer in ("early", "late"):
        flat = data.flat(layer).double().numpy()
        rows = []
        for k in range(CLASSES):
            chosen = [i for i in range(len(data)) if int(data.labels[i]) == k and int(data.predicted[i]) == k][
                :per_concept
            ]
            rows.append(flat[chosen].mean(axis=0))
        references[layer] = np.stack(rows)
    return references


def naive_margins(data: Capture, references: dict[str, np.ndarray], word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean margin and mean 1-vs-2 outcome, [B, L], one test at a time."""
    word_correlations = np.corrcoef(word)
    margins, passes = np.zeros((len(data), 2)), np.zeros((len(data), 2))
    for b in range(len(data)):
        p = int(data.predicted[b])
        for column, layer in enumerate(("early", "late")):
            found = []
            for q in range(CLASSES):
                if q == p:
                    continue
                keep = [k for k in range(CLASSES) if k not in (p, q)]
                i = [pearson(data.flat(layer)[b].numpy(), references[layer][k]) for k in keep]
                found.append(pearson(i, word_correlations[p, keep]) - pearson(i, word_correlations[q, keep]))
            margins[b, column] = np.mean(found)
            passes[b, column] = np.mean([margin > 0 for margin in found])
    return margins, passes


def test_references_are_means_of_the_first_correct_images(fitted: SemanticSignature) -> None:
    expected = naive_references(semantic(400, 0, mistakes=30), 15)
    for layer in ("early", "late"):
        stored = fitted.references(layer).double().numpy()
        for k in range(CLASSES):
            assert pearson(stored[k], expected[layer][k]) == pytest.approx(1, abs=1e-6)


def test_margins_equal_one_test_at_a_time(fitted: SemanticSignature) -> None:
    fresh = semantic(25, 1, mistakes=5)
    references = naive_references(semantic(400, 0, mistakes=30), 15)
    expected, outcomes = naive_margins(fresh, references, words().double().numpy())
    margins, passes = fitted.margins(fresh)
    assert margins.shape == passes.shape == (25, 2)
    np.testing.assert_allclose(margins.numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(passes.numpy(), outcomes, atol=1e-6)
    assert float(margins.abs().max()) <= 2


def test_score_is_a_regularised_mahalanobis_distance(fitted: SemanticSignature) -> None:
    training, fresh = semantic(400, 0, mistakes=30), semantic(40, 2)
    seen, asked = fitted.margins(training)[0].double().numpy(), fitted.margins(fresh)[0].double().numpy()
    owner = training.predicted.numpy()
    means = np.stack([seen[owner == k].mean(axis=0) for k in range(CLASSES)])
    centred = seen - means[owner]
    covariance = centred.T @ centred / len(seen)
    covariance = 0.9 * covariance + 0.1 * np.diag(np.diag(covariance))
    deviation = asked - means[fresh.predicted.numpy()]
    expected = np.sqrt(np.einsum("bi,ij,bj->b", deviation, np.linalg.inv(covariance), deviation))
    np.testing.assert_allclose(fitted.score(fresh).numpy(), expected, rtol=0.01)  # n, n - 1 or n - K
    reading = fitted.read(fresh)
    assert list(reading.components) == ["untypicality"]
    assert not reading.two_sided
    assert torch.equal(reading.components["untypicality"], reading.score)


def test_untypical_on_either_side(fitted: SemanticSignature) -> None:
    """Never just the mean: a layer that speaks too well for the class is untypical as well."""
    data = semantic(400, 0, mistakes=30)
    margins = fitted.margins(data)[0].double()
    chosen = data.predicted == 0
    mean = margins[chosen].mean(dim=0)
    best = int((margins[chosen, 1]).argmax())
    row = data.select(torch.nonzero(chosen).flatten()[best : best + 1])
    assert float(fitted.margins(row)[0][0, 1]) > float(mean[1])
    assert float(fitted.score(row)) > 1.0


def test_an_attacks_profile_is_untypical(fitted: SemanticSignature) -> None:
    """The early layer still speaks for the true class, the late one for the adversarial class."""
    clean = semantic(300, 3)
    assert clean.labels is not None
    target = (clean.labels + 1 + classes_of(300, 4).remainder(CLASSES - 1)) % CLASSES
    assert bool((target != clean.labels).all())
    attacked = capture_of(layers_of(clean.labels, target, 5), target.tolist(), CLASSES, clean.labels.tolist())
    assert auroc(fitted.score(clean), fitted.score(attacked)) > 0.75
    clean_margins, attacked_margins = fitted.margins(clean)[0], fitted.margins(attacked)[0]
    assert float(attacked_margins[:, 0].mean()) < 0.0 < float(clean_margins[:, 0].mean())
    assert float(attacked_margins[:, 1].mean()) > 0.3
    passes = fitted.margins(clean)[1].mean(dim=0)
    assert float(passes[1]) > float(passes[0]) > 0.5  # it rises with depth


def test_explanation_shows_the_profile(fitted: SemanticSignature) -> None:
    fresh = semantic(3, 6)
    margins, passes = fitted.margins(fresh)
    explained = fitted.explain(fresh)[2]
    assert explained == {
        "untypicality": pytest.approx(float(fitted.score(fresh)[2]), abs=1e-4),
        "layers": [
            {
                "layer": layer,
                "one_versus_two": pytest.approx(float(passes[2, i]), abs=1e-4),
                "margin": pytest.approx(float(margins[2, i]), abs=1e-4),
            }
            for i, layer in enumerate(("early", "late"))
        ],
    }


def test_merge_over_shards_equals_the_whole() -> None:
    data = semantic(300, 7, mistakes=10)
    whole = signature(images_per_concept=5).fit([data])
    first, second = split(data, [160, 140])
    shards = []
    for shard in (first, second):
        part = copy.deepcopy(whole)  # the references, and no statistics yet
        for name in ("counts", "sums", "products"):
            setattr(part, name, torch.zeros_like(getattr(part, name)))
        shards.append(part.observe([shard]))
    merged = shards[0].merge(shards[1])
    fresh = semantic(50, 8)
    torch.testing.assert_close(merged.score(fresh), whole.score(fresh), atol=1e-5, rtol=1e-5)
    assert torch.equal(merged.counts, whole.counts)
    with pytest.raises(DataError, match="hold different references: collect once, then observe on every shard"):
        merged.merge(signature(images_per_concept=6).fit([data]))


def test_a_shard_restored_from_anothers_state_does_not_write_into_it() -> None:
    whole = signature(images_per_concept=5).fit([semantic(120, 9)])
    counts = whole.counts.clone()
    shard = signature(images_per_concept=5).restore(whole.state_dict())
    shard.observe([semantic(60, 10)])
    assert torch.equal(whole.counts, counts), "observing on the shard changed the signature it was restored from"


def test_a_class_never_predicted_has_the_overall_signature() -> None:
    data = semantic(240, 11)
    assert data.labels is not None
    signature_of = signature(images_per_concept=5).fit([data])
    keep = data.labels != 2
    part = copy.deepcopy(signature_of)
    for name in ("counts", "sums", "products"):
        setattr(part, name, torch.zeros_like(getattr(part, name)))
    part.observe([data.select(keep)])
    assert int(part.counts[2]) == 0
    assert torch.isfinite(part.score(data)).all()


def test_zero_and_constant_activations_never_give_nan(fitted: SemanticSignature) -> None:
    logits = semantic(2, 12).logits
    for value in (0.0, 3.0):
        blank = Capture(logits, {"early": torch.full((2, 6, 2, 2), value), "late": torch.full((2, 30), value)})
        reading = fitted.read(blank)
        assert torch.isfinite(reading.score).all()
        assert fitted.margins(blank)[0].abs().max() < 1e-6
    flat_words = signature(torch.ones(CLASSES, 4)).fit([semantic(120, 13)])
    assert torch.isfinite(flat_words.score(semantic(5, 14))).all()


def test_a_thousand_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    classes, images = 1000, 2000
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    vectors = torch.randn(classes, 50, generator=generator)
    activations = {layer: vectors[labels] @ torch.randn(50, 64, generator=generator) for layer in ("early", "late")}
    capture = capture_of(activations, labels.tolist(), classes, labels.tolist())
    made = signature(vectors, images_per_concept=2).fit([capture])
    assert all(buffer.numel() <= classes**2 for buffer in made.buffers())
    few = capture.select(torch.tensor([0, 999, 500]))
    margins, passes = made.margins(few)
    assert torch.isfinite(made.score(few)).all()
    assert float(passes.min()) > 0.9, "activations that are the words' own geometry speak for their class"
    word, (p, q) = correlations(vectors).numpy(), (999, 7)
    keep = [k for k in range(classes) if k not in (p, q)]
    i = np.array([pearson(few.flat("late")[1], made.references("late")[k]) for k in range(classes)])
    expected = pearson(i[keep], word[p, keep]) - pearson(i[keep], word[q, keep])
    assert float(made.pair_margins(few)[1, 1, q]) == pytest.approx(expected, abs=1e-4)
    assert margins.shape == (3, 2)
    monkeypatch.setattr("askance.detectors.semantic_signature.PERMUTATIONS", 30)
    accuracy = made.semantic_accuracy([capture])  # of a hundred classes
    assert all(one["two_versus_two"] > 0.9 and one["p_value"] < 0.05 for one in accuracy.values())


def test_what_cannot_be_fitted_or_asked() -> None:
    data = semantic(120, 15)
    unfitted = signature()
    text = r"SemanticSignature is not fitted: call SemanticSignature\.fit\(stream\) or load it from a bundle first"
    for ask in (unfitted.score, unfitted.components, unfitted.explain):
        with pytest.raises(NotFittedError, match=text):
            ask(data)
    with pytest.raises(DataError, match="takes 5 classes or more, got 4: leave it out of the config"):
        signature(words(classes=4))
    with pytest.raises(DataError, match="7 word vectors for 6 classes: expected one each"):
        signature(words(classes=7)).fit([data])
    with pytest.raises(DataError, match="from labelled inputs: this stream has no labels"):
        unfitted.fit([Capture(data.logits, data.activations)])
    without = SemanticSignature(SemanticSignatureOptions(semantic_layers=("early", "late")))
    with pytest.raises(DataError, match="fitted with word vectors: pass word_vectors, one row per class"):
        without.fit([data])
    assert data.labels is not None
    with pytest.raises(DataError, match=r"no correctly classified input of class \[3, 5\]"):
        unfitted.fit([data.select((data.labels != 3) & (data.labels != 5))])


def test_many_missing_classes_are_counted() -> None:
    vectors, labels = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), torch.arange(50)
    capture = capture_of({"early": vectors, "late": vectors}, [0] * 50, 50, labels.tolist())
    message = r"of class \[1, 2, 3, 4, 5, 6, 7, 8, 9, 10\] and 39 more: every class needs"
    with pytest.raises(DataError, match=message):
        signature(vectors).fit([capture])


def test_scores_alone_equal_scores_in_a_batch(trained: Trained) -> None:
    (capture,) = trained.captures("evaluate", 1000)
    detector = trained.detectors["semantic_signature"]
    batch = detector.score(capture)
    alone = torch.cat([detector.score(capture.select(torch.tensor([i]))) for i in range(64)])
    torch.testing.assert_close(alone, batch[:64], atol=1e-5, rtol=0)
