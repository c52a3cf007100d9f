"""The baselines, each against a case by hand or a second implementation, and the weights that the fusion learns."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from calibration_support import DigitsRun
from scipy.spatial.distance import cdist
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from askance.calibration.baselines import (
    BASELINES,
    Energy,
    FeatureSqueezing,
    FewLargeShifts,
    LocalIntrinsicDimensionality,
    LogitLayer,
    Mahalanobis,
    MaxSoftmax,
    NearestNeighbors,
    Observation,
    Recovery,
    knn,
    lid,
)
from askance.calibration.baselines._unusual import Unusual
from askance.calibration.baselines.lid import local_intrinsic_dimensionality
from askance.calibration.baselines.masks import RATE, STEPS, learn_mask, moved
from askance.calibration.baselines.observation import Need, observe_batch
from askance.calibration.baselines.squeezers import non_local_means, squeezers
from askance.calibration.harness import Harness
from askance.calibration.images import Images
from askance.calibration.inputs import load_inputs
from askance.calibration.metrics import detection
from askance.calibration.stages import Stages
from askance.calibration.weighing import learn_weights
from askance.detectors import Tap
from askance.errors import CalibrationError
from askance.judgement.arrays import Doubles

FITTED = {"mahalanobis", "lid", "knn", "recovery", "logit_layer", "few_large_shifts"}


def test_which_baselines_are_fitted_and_to_what() -> None:
    fitted = {name for name, baseline in BASELINES.items() if baseline.learns()}
    trained = {name for name, baseline in BASELINES.items() if baseline.learns_from_attacks}
    assert (fitted, trained) == (FITTED, {"mahalanobis", "lid"})


def observation(count: int, seed: int, shift: float = 0.0) -> Observation:
    """Three classes; features around their class's mean, moved by `shift`."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    means = 3 * torch.eye(3)[labels]
    logits = 2 * means + torch.randn(count, 3, generator=g)
    features = {
        "early": torch.randn(count, 6, generator=g) + shift,
        "middle": means @ torch.ones(3, 5).tril() + 0.5 * torch.randn(count, 5, generator=g) + 2 * shift,
        "late": torch.cat([means, means], dim=1) + 0.5 * torch.randn(count, 6, generator=g) + shift,
        "linear": logits,
    }
    squeezed = {"bits": (logits + torch.randn(count, 3, generator=g)).softmax(dim=1)}
    # a mask moves the answer of what has been moved farther than the layers
    jolt = (0.05 + 5 * shift) * torch.randn(count, 3, generator=g)
    masked = Observation(
        logits + jolt,
        labels,
        {name: v + 0.1 * torch.randn(v.shape, generator=g) for name, v in features.items()},
        {},
    )
    return Observation(logits, labels, features, squeezed, masked)


CLEAN, TUNE, OTHER = observation(600, 0), observation(300, 1), observation(300, 2)
SEEN = [observation(200, 3, shift=1.0), observation(100, 4, shift=0.7)]


def test_every_baseline_is_there_and_ranks_the_moved_above_the_clean() -> None:
    baselines = [baseline.fit(CLEAN, TUNE, SEEN) for baseline in (kind() for kind in BASELINES.values())]
    assert [baseline.name for baseline in baselines] == [
        "max_softmax", "energy", "mahalanobis", "lid", "feature_squeezing", "knn", "recovery",
        "logit_layer", "few_large_shifts",
    ]  # fmt: skip
    moved = observation(300, 5, shift=1.0)
    for baseline in baselines:
        assert baseline.score(OTHER).shape == (300,)
        assert baseline.score(OTHER).dtype == torch.float64
        figures = detection(baseline.score(OTHER), baseline.score(moved))
        assert figures is not None
        if baseline.name in FITTED:
            assert figures["auroc"] > 0.8, baseline.name
    assert all(baseline.title for baseline in baselines)


def test_observations_survive_a_stage_in_order() -> None:
    back = Observation.from_tensors(dict(sorted(CLEAN.tensors().items(), reverse=True)))
    assert list(back.features) == ["early", "middle", "late", "linear"]
    assert torch.equal(back.features["late"], CLEAN.features["late"])
    assert torch.equal(back.squeezed["bits"], CLEAN.squeezed["bits"])
    assert back.masked is not None
    assert CLEAN.masked is not None
    assert torch.equal(back.masked.logits, CLEAN.masked.logits)
    assert list(back.masked.features) == list(CLEAN.features)
    few = back[torch.arange(600) < 10]
    assert len(few) == 10
    assert few.masked is not None
    assert len(few.masked) == 10
    again = Observation.joined([back[torch.arange(600) < 10], back[torch.arange(600) >= 10]])
    assert all(torch.equal(again.tensors()[name], tensor) for name, tensor in CLEAN.tensors().items())


def one(logits: list[list[float]], squeezed: list[list[float]] | None = None) -> Observation:
    values = torch.tensor(logits)
    return Observation(values, torch.zeros(len(values)), {}, {} if squeezed is None else {"s": torch.tensor(squeezed)})


def test_softmax_energy_and_squeezing_by_hand() -> None:
    inputs = one([[math.log(3), 0.0], [40.0, 0.0]], [[0.5, 0.5], [1.0, 0.0]])
    assert MaxSoftmax().score(inputs).tolist() == pytest.approx([0.25, math.exp(-40)], rel=1e-6)
    assert Energy().score(inputs).tolist() == pytest.approx([-math.log(4), -40.0], rel=1e-6)
    assert FeatureSqueezing().score(inputs).tolist() == pytest.approx([0.5, 0.0], abs=1e-6)


def test_feature_squeezing_takes_the_farthest_copy() -> None:
    logits = torch.zeros(1, 2)
    squeezed = {"a": torch.tensor([[0.6, 0.4]]), "b": torch.tensor([[0.1, 0.9]])}
    assert FeatureSqueezing().score(Observation(logits, torch.zeros(1), {}, squeezed)).tolist() == pytest.approx([0.8])


def test_recovery_by_hand() -> None:
    """Adapters that recover nothing: the errors are the squared activations themselves."""

    class Nothing(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.width = width

        def forward(self, deepest: Tensor) -> Tensor:
            return torch.zeros(len(deepest), self.width)

    made = Recovery()
    made._adapters = [Nothing(2), Nothing(1)]
    features = {
        "a": torch.tensor([[1.0, 1.0], [0.0, 0.0]]),
        "b": torch.tensor([[0.0], [3.0]]),
        "c": torch.zeros(2, 4),
    }
    inputs = Observation(torch.zeros(2, 3), torch.zeros(2), features, {})
    expected = []
    for errors in ((2.0, 0.0), (0.0, 9.0)):
        total = sum(math.exp(one) for one in errors)
        shares = [math.exp(one) / total for one in errors]
        uneven = sum(math.log(2) + share * math.log(share + 1e-8) for share in shares)
        expected.append(uneven * math.log(sum(errors) / 2 + 1e-8))
    assert made._recovered(inputs).tolist() == pytest.approx(expected)
    made._usual = Unusual(torch.tensor([expected[0] - 1, expected[0] + 1, expected[1] - 1], dtype=torch.float64))
    # of three usual ones 1 and 3 are below: the quantiles of 3/8 and 7/8
    quantiles = [NormalDist().inv_cdf(share) for share in (1.5 / 4, 3.5 / 4)]
    assert made.score(inputs).tolist() == pytest.approx([one**2 for one in quantiles])


def test_what_a_mask_moves_by_hand() -> None:
    before = Observation(
        torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]),
        torch.zeros(2),
        {"a": torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]), "logits": torch.zeros(2, 2)},
        {},
    )
    after = Observation(
        torch.tensor([[0.0, 0.0], [0.0, math.log(9)]]),
        torch.zeros(2),
        {"a": torch.tensor([[1.0, 1.0, 2.5], [3.0, 0.0, 0.0]]), "logits": torch.ones(2, 2)},
        {},
    )
    # of the softmax (3/4, 1/4) the predicted class is 0, of (1/2, 1/2) 0; masked it is (1/2, 1/2) and (1/10, 9/10)
    entropies = [-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), math.log(2)]
    answers = [entropies[0] * (0.25 + 0.25) / 2, entropies[1] * (0.81 + 0.81) / 2]
    expected = [math.log(answers[0] / (2.25 / 3)), math.log(answers[1] / (9 / 3))]
    found = moved(replace(before, masked=after))
    assert found.shape == (2, 1)
    assert found[:, 0].tolist() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(CalibrationError, match="needs a tapped layer before the logits: tap one, or leave it out"):
        moved(replace(before, features={"logits": torch.zeros(2, 2)}, masked=after))


def test_logit_layer_and_recovery_are_squared_quantiles_added() -> None:
    parts = [kind().fit(CLEAN, TUNE, SEEN).score(OTHER) for kind in (Recovery, LogitLayer)]
    assert torch.equal(FewLargeShifts().fit(CLEAN, TUNE, SEEN).score(OTHER), parts[0] + parts[1])
    usual = moved(TUNE).double().mean(dim=1)
    below = (usual < moved(OTHER[torch.tensor([5])]).double().mean(dim=1)).sum().item()
    assert parts[1][5].item() == pytest.approx(NormalDist().inv_cdf((below + 0.5) / (len(TUNE) + 1)) ** 2)


def test_a_learned_mask_moves_layers_far_and_answers_little() -> None:
    class Mean(torch.nn.Module):
        """Whose answer hangs on how the halves of an image differ: brightening all of it changes layers alone."""

        def __init__(self) -> None:
            super().__init__()
            self.same = torch.nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            halves = self.same(x).view(len(x), 2, -1).mean(dim=2)
            return torch.cat([halves, halves.mean(dim=1, keepdim=True)], dim=1)

    g = torch.Generator().manual_seed(0)
    images = Images(torch.randint(0, 256, (200, 1, 4, 4), generator=g, dtype=torch.uint8), torch.zeros(200).long(), ())
    with Tap(Mean().eval(), ["same"]) as tap:
        mask = learn_mask(tap, images)
        assert torch.equal(mask, learn_mask(tap, images))

        def loss(mask: Tensor) -> float:
            seen = observe_batch(tap, images.pixels(), images.y, {Need.FEATURES}, mask)
            return float(moved(seen).mean())

        reached = float((mask - 1).abs().max())
        signs = torch.randint(0, 2, (20, 1, 4, 4), generator=g) * 2 - 1.0
        others = [loss(1 + reached * sign) for sign in signs]
        assert mask.shape == (1, 4, 4)
        assert 0.01 < reached < 1.1 * STEPS * RATE
        assert loss(mask) < min(others)


def test_a_mask_cannot_be_learned_without_gradients() -> None:
    class Still(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat = torch.nn.Flatten()

        def forward(self, x: Tensor) -> Tensor:
            values: Tensor = self.flat(x.detach())
            return values[:, :2]

    images = Images(torch.zeros(10, 1, 2, 2, dtype=torch.uint8), torch.zeros(10).long(), ())
    message = "learns by gradients, the classifier has none: leave it out"
    with Tap(Still().eval(), ["flat"]) as tap, pytest.raises(CalibrationError, match=message):
        learn_mask(tap, images)


def test_recovery_wants_layers_to_recover() -> None:
    few = replace(CLEAN, features={name: CLEAN.features[name] for name in ("middle", "late", "linear")})
    with pytest.raises(CalibrationError, match="needs three tapped layers before the logits, got 2: tap more"):
        Recovery().fit(few, few, [])


def test_nearest_neighbours_against_all_distances() -> None:
    def unit(values: Tensor) -> np.ndarray:
        array: np.ndarray = torch.nn.functional.normalize(values.double(), dim=1).numpy()
        return array

    expected = np.sort(cdist(unit(OTHER.features["late"]), unit(CLEAN.features["late"])), axis=1)[:, knn.NEIGHBORS - 1]
    assert NearestNeighbors().fit(CLEAN, TUNE, SEEN).score(OTHER).numpy() == pytest.approx(expected)


def test_mahalanobis_against_the_formula() -> None:
    readings = Mahalanobis().fit(CLEAN, TUNE, SEEN).readings(OTHER)
    for column, layer in enumerate(CLEAN.features):
        x = CLEAN.features[layer].double().numpy()
        y = CLEAN.labels.numpy()
        means = np.stack([x[y == k].mean(axis=0) for k in range(3)])
        centred = x - means[y]
        inverse = np.linalg.inv(centred.T @ centred / len(x))
        offsets = OTHER.features[layer].double().numpy()[:, None] - means
        expected = np.einsum("nkd,de,nke->nk", offsets, inverse, offsets).min(axis=1)
        assert readings[:, column] == pytest.approx(expected, rel=1e-6)


def test_lid_by_hand_and_against_a_loop() -> None:
    distances = np.array([[1.0, 2.0, 4.0]])
    expected = -1 / ((math.log(1 / 4) + math.log(2 / 4) + 0) / 3)
    assert local_intrinsic_dimensionality(distances) == pytest.approx([expected])
    assert np.isfinite(local_intrinsic_dimensionality(np.zeros((1, 3)))).all()
    readings = LocalIntrinsicDimensionality().fit(CLEAN, TUNE, SEEN).readings(OTHER)
    rows = torch.randperm(len(CLEAN), generator=torch.Generator().manual_seed(0))[: lid.REFERENCE_IMAGES]
    reference = CLEAN.features["late"][rows].double().numpy()
    for i in range(5):
        r = np.sort(cdist(OTHER.features["late"][i : i + 1].double().numpy(), reference)[0])[: lid.NEIGHBORS]
        assert readings[i, list(CLEAN.features).index("late")] == pytest.approx(-1 / np.mean(np.log(r / r[-1])))


def test_lid_finds_the_dimension_of_a_ball() -> None:
    points = np.random.default_rng(0).normal(size=(20000, 3))
    nearest = np.sort(cdist(points[:50], points[50:]), axis=1)[:, :100]
    assert local_intrinsic_dimensionality(nearest).mean() == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize(
    ("channels", "names"), [(1, {"bits_1", "median_2"}), (3, {"bits_5", "median_2", "non_local_means"})]
)
def test_squeezers_leave_shapes_alone(channels: int, names: set[str]) -> None:
    images = torch.rand(3, channels, 16, 16)
    made = squeezers(channels)
    assert set(made) == names
    for squeeze in made.values():
        squeezed = squeeze(images)
        assert squeezed.shape == images.shape
        assert squeezed.min() >= 0
        assert squeezed.max() <= 1


def test_non_local_means_smooths_noise_and_keeps_flat_images() -> None:
    flat = torch.full((1, 3, 16, 16), 100 / 255)
    assert torch.equal(non_local_means(flat), flat)
    noisy = (flat + 0.01 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert non_local_means(noisy).std() < noisy.std()


def surprisals(rows: int, count: int, g: np.random.Generator) -> Doubles:
    return g.exponential(size=(rows, count))  # u of uniform p-values


def test_weights_find_what_tells_and_which_way() -> None:
    g = np.random.default_rng(0)
    clean = surprisals(3, 5000, g)
    telling, useless, calming = (share * surprisals(1, 5000, g) for share in (4, 1, 0.2))
    weights, bias = learn_weights([clean], [np.concatenate([telling, useless, calming])])
    assert weights.shape == (3,)
    assert weights.dtype == np.float64
    assert weights[0] > 0.3
    assert abs(float(weights[1])) < 0.1
    assert weights[2] < -0.3
    assert np.isfinite(bias)


def test_weights_by_a_second_implementation() -> None:
    """scikit-learn's logistic regression, with the same shares; its C is 1 / (2 penalty)."""
    g = np.random.default_rng(1)
    calm, seen = [surprisals(2, 300, g), surprisals(2, 50, g)], [1.5 * surprisals(2, 80, g)]
    x = np.concatenate([*calm, *seen], axis=1).T
    truth = np.repeat([0, 0, 1], [300, 50, 80])
    shares = np.repeat([0.25 / 300, 0.25 / 50, 0.5 / 80], [300, 50, 80])
    theirs = LogisticRegression(C=1 / (2 * 0.01), tol=1e-10, max_iter=5000).fit(x, truth, sample_weight=shares)
    weights, bias = learn_weights(calm, seen, penalty=0.01)
    assert weights == pytest.approx(theirs.coef_[0], abs=1e-3)
    assert bias == pytest.approx(theirs.intercept_[0], abs=1e-3)


def test_what_shares_the_noise_of_what_tells_is_subtracted() -> None:
    """It tells nothing by itself; the score with it tells more than any that only adds."""
    g = np.random.default_rng(0)

    def drawn(count: int, signal: float) -> Doubles:
        noise, own = 2 * g.standard_normal(count), 0.5 * g.standard_normal(count)
        return np.stack([signal + noise + own, noise])

    clean, attacked = drawn(2000, 0.0), drawn(1000, 1.0)
    weights, _ = learn_weights([clean], [attacked])
    assert weights[1] < -0.7 * weights[0] < 0
    learned = detection(weights @ drawn(2000, 0.0), weights @ drawn(1000, 1.0))
    adding = detection(drawn(2000, 0.0)[0], drawn(1000, 1.0)[0])
    assert learned is not None
    assert adding is not None
    assert learned["auroc"] > 0.9
    assert adding["auroc"] < 0.7


def test_sets_count_alike() -> None:
    g = np.random.default_rng(0)
    clean = surprisals(2, 1000, g)

    def attacked(row: int, count: int) -> Doubles:
        u = surprisals(2, count, g)
        u[row] *= 4
        return u

    few, many = attacked(0, 50), attacked(1, 5000)
    weights, bias = learn_weights([clean], [few, many])
    assert weights[0] > 0.5 * weights[1]
    again = learn_weights([clean, np.tile(clean, 3)], [np.tile(few, 7), many])
    np.testing.assert_allclose([*again[0], again[1]], [*weights, bias], atol=2e-3)
    # benign images in which what tells of the first attack tells of nothing take its weight away
    calm, _ = learn_weights([clean, attacked(0, 30)], [few, many])
    assert calm[0] < 0.6 * weights[0]
    assert calm[1] > 0.6 * weights[1]


# In a calibration


@pytest.fixture
def harness(digits_run: DigitsRun, tmp_path: Path) -> Harness:
    return Harness(load_inputs(digits_run.config), digits_run.bundle.detectors(), Stages(tmp_path, {}, resume=False))


def with_baselines(harness: Harness, *names: str) -> Harness:
    settings = harness.inputs.settings
    evaluation = settings.evaluation.model_copy(update={"baselines": names})
    inputs = replace(harness.inputs, settings=settings.model_copy(update={"evaluation": evaluation}))
    return Harness(inputs, harness.detectors, harness.stages)


def test_nothing_is_read_that_no_baseline_needs(harness: Harness, tmp_path: Path) -> None:
    """The logits are those that our detectors have read: squeezing every image took longer than all else."""
    few = harness.inputs.splits["evaluate"][:20]
    found = {
        names: with_baselines(harness, *names).observation("few", few)
        for names in (
            ("max_softmax", "energy"),
            ("max_softmax", "knn"),
            ("feature_squeezing",),
            ("lid", "feature_squeezing"),
        )
    }
    layers = len(harness.tap.layers)
    assert [(len(one.features), len(one.squeezed)) for one in found.values()] == [
        (0, 0),
        (layers, 0),
        (0, 2),
        (layers, 2),
    ]
    for one in found.values():
        assert np.array_equal(one.logits, harness.scores("few", few).readings.logits)
        assert torch.equal(one.labels, few.y)
    kept = [path.name.partition("-few")[0] for path in tmp_path.glob("*few*")]
    assert sorted(kept) == ["baselines", "baselines", "baselines", "read"]  # the first read nothing of its own
