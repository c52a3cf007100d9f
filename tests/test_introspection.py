"""Introspection: the error by hand, the discrepancy by hand, planted errors ranked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy import Trained, auroc, split

from askance.detectors import Capture, Introspection, IntrospectionOptions
from askance.detectors.infovae import InfoVAE, dense, maximum_mean_discrepancy
from askance.detectors.introspection import declared_margin, log_error
from askance.errors import DataError, LayerError, NotFittedError

QUICK: dict[str, Any] = {"cycles": 4, "cycle_steps": 120}


def introspection(**options: Any) -> Introspection:
    return Introspection(IntrospectionOptions.model_validate({"hidden_layers": ("a", "b"), **QUICK, **options}))


def uncertain_region(count: int, seed: int) -> Capture:
    """Three classes by position; inputs near the origin of the plane are given random labels, and soft logits."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    hard = torch.rand(count, generator=generator) < 0.3
    angle = labels * (2 * math.pi / 3)
    radius = torch.where(hard, 0.3, 3.0)
    position = torch.stack([angle.cos(), angle.sin()], dim=1) * radius.unsqueeze(1)
    position = position + 0.25 * torch.randn(count, 2, generator=generator)
    mixing = torch.randn(2, 12, generator=torch.Generator().manual_seed(99))
    directions = torch.arange(3) * (2 * math.pi / 3)
    logits = 4 * position @ torch.stack([directions.cos(), directions.sin()])
    hidden = F.relu(position @ mixing) * torch.logspace(-2, 2, 12)
    return Capture(logits, {"a": hidden[:, :8], "b": hidden[:, 8:].view(count, 2, 2, 1)}, labels)


@pytest.mark.parametrize(
    ("logits", "label", "expected"),
    [
        ([0.0, 0.0], 0, math.log10(0.25)),  # p = (1/2, 1/2): e = 1/2 (1/4 + 1/4)
        ([0.0, 0.0, 0.0], 2, math.log10(0.5 * (4 / 9 + 1 / 9 + 1 / 9))),
        ([0.0, math.log(3.0)], 1, math.log10(1 / 16)),  # p = (1/4, 3/4), right
        ([0.0, math.log(3.0)], 0, math.log10(9 / 16)),  # and wrong
        ([100.0, 0.0], 0, -6.0),  # clamped at 1e-6
        ([100.0, 0.0], 1, 0.0),  # as wrong as can be: e = 1
        ([1e4, -1e4], 1, 0.0),
    ],
)
def test_log_error_by_hand(logits: list[float], label: int, expected: float) -> None:
    value = log_error(torch.tensor([logits]), torch.tensor([label]))
    assert value.shape == (1,)
    assert float(value) == pytest.approx(expected, abs=1e-5)


def test_discrepancy_by_hand() -> None:
    """One draw each, d = 1, kernel 2 / (2 + 4) between 0 and 2: MMD^2 = 1 + 1 - 2/3."""
    assert float(maximum_mean_discrepancy(torch.tensor([[0.0]]), torch.tensor([[2.0]]))) == pytest.approx(4 / 3)


def test_discrepancy_of_equal_samples_is_zero_and_of_shifted_ones_large() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=generator)
    y = torch.randn(400, 3, generator=generator)
    assert abs(float(maximum_mean_discrepancy(x, x))) < 1e-6
    assert abs(float(maximum_mean_discrepancy(x, x[torch.randperm(400, generator=generator)]))) < 1e-6
    same, shifted = float(maximum_mean_discrepancy(x, y)), float(maximum_mean_discrepancy(x, y + 3))
    assert 0 <= same < 0.01
    assert shifted > 0.3
    assert float(maximum_mean_discrepancy(x, 2 * y)) > 3 * same  # a spread too wide is seen as well
    assert float(maximum_mean_discrepancy(x, y + 1)) < shifted
    assert float(maximum_mean_discrepancy(y + 3, x)) == pytest.approx(shifted, abs=1e-6)


def test_networks_are_those_of_table_2() -> None:
    def shapes(module: nn.Module) -> list[tuple[int, int]]:
        return [(m.in_features, m.out_features) for m in module.modules() if isinstance(m, nn.Linear)]

    vae = InfoVAE(17, 2)
    assert shapes(vae.encoder) == [(17, 200), (200, 200), (200, 200), (200, 2)]
    assert shapes(vae.decoder) == [(2, 200), (200, 200), (200, 200), (200, 17)]
    assert shapes(dense(2, 1)) == [(2, 200), (200, 200), (200, 200), (200, 1)]
    for part in (vae.encoder, vae.decoder):
        activations = [m for m in part.modules() if not list(m.children()) and not isinstance(m, nn.Linear)]
        assert [type(m) for m in activations] == [nn.ELU] * 3
        assert isinstance(list(part.children())[-1], nn.Linear)  # linear ends


def test_loss_is_reconstruction_plus_weighted_discrepancy() -> None:
    torch.manual_seed(0)
    vae, h = InfoVAE(6, 2), torch.randn(32, 6)
    z = vae.project(vae.hidden(h))
    reconstruction = 0.5 * (vae.decode(z) - h).square().sum(dim=1).mean()

    def loss(weight: float) -> float:
        return float(vae.loss(h, weight, torch.Generator().manual_seed(5)).detach())

    assert loss(0.0) == pytest.approx(float(reconstruction.detach()), rel=1e-5)
    prior = torch.randn(z.shape, generator=torch.Generator().manual_seed(5))
    discrepancy = float(maximum_mean_discrepancy(z, prior).detach())
    for weight in (0.5, 3.0):
        assert loss(weight) - loss(0.0) == pytest.approx(weight * discrepancy, rel=1e-3)


@pytest.fixture(scope="module")
def fitted() -> Introspection:
    return introspection(seed=1).fit(split(uncertain_region(900, 0), [400, 500]))


def test_declared_margin_by_hand() -> None:
    """The log of the difference of the two greatest logits; ties and confident answers keep finite values."""
    found = declared_margin(torch.tensor([[1.0, 4.0, 2.0], [3.0, 3.0, 0.0], [60.0, 0.0, -5.0]]))
    assert found[[0, 2]].tolist() == pytest.approx([math.log(2.0), math.log(60.0)])
    assert -90 < float(found[1]) < -80


@pytest.mark.parametrize("reads", ["hidden", "latent"])
def test_planted_errors_are_ranked_first(reads: str) -> None:
    detector = introspection(estimator_reads=reads).fit([uncertain_region(900, 0)])
    fresh = uncertain_region(600, 1)
    reading = detector.read(fresh)
    assert fresh.labels is not None
    wrong = fresh.predicted != fresh.labels
    assert 30 < int(wrong.sum()) < 200
    assert auroc(reading.score[~wrong], reading.score[wrong]) > 0.85
    other = "latent" if reads == "hidden" else "hidden"
    other_names = {f"estimated_error:{other}", "reconstruction_error", "declared_margin"}
    assert set(reading.components) == {"estimated_error"} | other_names
    assert torch.equal(reading.components["estimated_error"], reading.score)
    assert auroc(reading.components[f"estimated_error:{other}"][~wrong],
                 reading.components[f"estimated_error:{other}"][wrong]) > 0.85  # fmt: skip
    # The estimate is a log10 of an error in [1e-6, 1], and about right on average.
    truth = log_error(fresh.logits, fresh.labels)
    assert abs(float(reading.score.mean() - truth.mean())) < 0.7
    correlation = torch.corrcoef(torch.stack([reading.score, truth]))[0, 1]
    assert float(correlation) > 0.5


def test_activations_off_the_manifold_reconstruct_badly(fitted: Introspection) -> None:
    fresh = uncertain_region(300, 2)
    scrambled = Capture(
        fresh.logits, {"a": fresh.activations["a"], "b": fresh.activations["b"].roll(1, dims=0)}, fresh.labels
    )
    clean = fitted.components(fresh)["reconstruction_error"]
    assert auroc(clean, fitted.components(scrambled)["reconstruction_error"]) > 0.8
    h = fitted.standardised(fresh)
    vae = fitted.autoencoder
    residual = vae.decode(vae.project(vae.hidden(h))) - h
    torch.testing.assert_close(clean, residual.square().mean(dim=1).log10(), atol=1e-4, rtol=1e-4)


def test_h_is_every_layer_standardised(fitted: Introspection) -> None:
    data = uncertain_region(900, 0)
    h = fitted.standardised(data)
    raw = torch.cat([data.flat("a"), data.flat("b")], dim=1)
    assert h.shape == (900, 12)
    loud = raw.std(dim=0) > 0.01 * raw.std(dim=0).mean()  # nearly silent units may be kept quiet
    assert int(loud.sum()) >= 6
    torch.testing.assert_close(h.mean(dim=0), torch.zeros(12), atol=1e-3, rtol=0)
    torch.testing.assert_close(h.std(dim=0, correction=0)[loud], torch.ones(int(loud.sum())), atol=1e-3, rtol=0)


def test_map_background_and_expected_activations(fitted: Introspection) -> None:
    data = uncertain_region(200, 3)
    points = fitted.map_points(data)
    assert points.shape == (200, 2)
    background = fitted.estimate_at(points)
    torch.testing.assert_close(background, fitted.components(data)["estimated_error:latent"], atol=1e-5, rtol=0)
    assert fitted.expected_activations().shape == (3, 12)
    torch.testing.assert_close(fitted.expected_activations(), fitted.autoencoder.decode(fitted.class_means))
    # The map separates what the classifier separates: each confident input lies nearest its own class's mean.
    confident = data.logits.softmax(dim=1).amax(dim=1) > 0.999
    nearest = torch.cdist(points, fitted.class_means).argmin(dim=1)
    assert float((nearest == data.predicted)[confident].double().mean()) > 0.9


def test_expected_latent_is_over_the_true_class(fitted: Introspection) -> None:
    data = uncertain_region(900, 0)
    z, labels = fitted.map_points(data), data.labels
    assert labels is not None
    expected = torch.stack([z[labels == k].mean(dim=0) for k in range(3)])
    torch.testing.assert_close(fitted.class_means, expected, atol=1e-4, rtol=1e-4)


def parameters(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def test_gradients_never_cross_from_the_estimators() -> None:
    """Whatever the estimators learn from, the autoencoder is the same, and none of it wants a gradient afterwards."""
    data, other = uncertain_region(300, 4), uncertain_region(300, 5)
    plain, held_out = introspection(cycles=2).fit([data]), introspection(cycles=2).fit([data], held_out=[other])
    for mine, theirs in zip(parameters(plain.autoencoder), parameters(held_out.autoencoder), strict=True):
        assert torch.equal(mine, theirs)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(parameters(plain.latent_estimator), parameters(held_out.latent_estimator), strict=True)
    )
    assert not any(p.requires_grad for p in plain.parameters())
    assert not plain.training


def test_seeds_decide_everything_and_global_randomness_is_left_alone() -> None:
    data = uncertain_region(200, 6)
    one = introspection(cycles=1, cycle_steps=20, seed=3)
    state = torch.random.get_rng_state()
    one.fit([data])
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(12345)
    again = introspection(cycles=1, cycle_steps=20, seed=3).fit(split(data, [60, 140]))
    other = introspection(cycles=1, cycle_steps=20, seed=4).fit([data])
    assert torch.equal(one.score(data), again.score(data))
    assert not torch.equal(one.score(data), other.score(data))


def test_silent_and_constant_activations_never_give_nan() -> None:
    data = uncertain_region(100, 7)
    constant = torch.full((100, 3), 2.0)
    with_constant = Capture(data.logits, {"a": data.activations["a"], "b": constant}, data.labels)
    detector = introspection(cycles=1, cycle_steps=20).fit([with_constant])
    zeros = Capture(data.logits[:2], {"a": torch.zeros(2, 8), "b": torch.zeros(2, 3)})
    for reading in (detector.read(with_constant), detector.read(zeros)):
        assert torch.isfinite(reading.score).all()
        assert all(torch.isfinite(values).all() for values in reading.components.values())


def test_what_cannot_be_fitted_or_asked() -> None:
    data = uncertain_region(100, 8)
    unfitted = introspection()
    text = r"Introspection is not fitted: call Introspection\.fit\(stream\) or load it from a bundle first"
    for ask in (unfitted.score, unfitted.components, unfitted.explain, unfitted.map_points):
        with pytest.raises(NotFittedError, match=text):
            ask(data)
    with pytest.raises(NotFittedError, match=text):
        unfitted.estimate_at(torch.zeros(1, 2))
    with pytest.raises(NotFittedError, match=text):
        unfitted.expected_activations()
    with pytest.raises(DataError, match="learns from labelled inputs: this stream has no labels"):
        unfitted.fit([Capture(data.logits, data.activations)])
    with pytest.raises(DataError, match="the data stream is empty: expected at least one input"):
        unfitted.fit([])
    few = data.select(torch.arange(9))
    with pytest.raises(DataError, match=r"needs at least \d+ inputs to fit and validate on, got 9"):
        unfitted.fit([few])
    same = Capture(data.logits, {"a": torch.ones(100, 4), "b": torch.zeros(100, 4)}, data.labels)
    with pytest.raises((DataError, LayerError), match=r"layers \['a', 'b'\] are the same for every input"):
        unfitted.fit([same])
    with pytest.raises(LayerError, match="layer 'c' was not tapped"):
        introspection(hidden_layers=("a", "c")).fit([data])


def test_fewest_inputs_are_those_the_error_names() -> None:
    with pytest.raises(DataError) as caught:
        introspection().fit([uncertain_region(9, 8)])
    needed = int(str(caught.value).split("at least ")[1].split()[0])
    with pytest.raises(DataError):
        introspection(cycles=1, cycle_steps=2).fit([uncertain_region(needed - 1, 8)])
    introspection(cycles=1, cycle_steps=2).fit([uncertain_region(needed, 8)])


def test_explanation_is_readable(fitted: Introspection) -> None:
    data = uncertain_region(3, 9)
    reading = fitted.read(data)
    first = fitted.explain(data)[0]
    assert set(first) == {"map_point", "estimated_error", "confidence", "log10_reconstruction_error"}
    assert first["confidence"] == pytest.approx(-float(reading.score[0]), abs=1e-3)
    assert first["estimated_error"] == pytest.approx(10 ** float(reading.score[0]), rel=0.01)
    assert len(first["map_point"]) == 2


def test_an_extrapolated_estimate_does_not_break_the_explanation(fitted: Introspection) -> None:
    """Activations far outside the training range drive the linear end beyond 10 ** 308."""
    data = uncertain_region(2, 9)
    far = Capture(data.logits, {"a": data.activations["a"] * 1e6, "b": data.activations["b"] * 1e6})
    evidence = dict(fitted.read(far).evidence)
    evidence["error"] = torch.full((2,), 400.0)
    fitted.explain_one({name: values[0] for name, values in evidence.items()})


def test_scores_alone_equal_scores_in_a_batch(trained: Trained) -> None:
    (capture,) = trained.captures("evaluate", 1000)
    detector = trained.detectors["introspection"]
    batch = detector.score(capture)
    alone = torch.cat([detector.score(capture.select(torch.tensor([i]))) for i in range(64)])
    torch.testing.assert_close(alone, batch[:64], atol=1e-5, rtol=0)
