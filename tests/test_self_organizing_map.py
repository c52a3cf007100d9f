"""Self-organizing map: vector codes and torus geometry by hand, a planted topology recovered, distances and owners."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from minisom import MiniSom
from torch import Tensor, nn
from toy import Trained, auroc, capture_of, split

from askance.detectors import Capture, SelfOrganizingMap, SelfOrganizingMapOptions, Tap, torus_map
from askance.detectors.detector import Inputs
from askance.detectors.self_organizing_map import channels_last, vector_code
from askance.detectors.torus_map import TorusMap, class_center, grid_positions, torus_distance, torus_offset
from askance.errors import BundleError, DataError, LayerError, NotFittedError


def som(*layers: str, **options: Any) -> SelfOrganizingMap:
    return SelfOrganizingMap(SelfOrganizingMapOptions.model_validate({"map_layers": layers, **options}))


def map_of(detector: SelfOrganizingMap, layer: str) -> TorusMap:
    return detector.layer_maps()[layer]


# Vector codes


def test_vector_code_by_hand() -> None:
    maps = torch.zeros(1, 2, 3, 3)
    maps[0, 0, 0, 2] = 3.0
    maps[0, 0, 2, 2] = 1.0
    maps[0, 1] = -2.0  # negative activations have mass too; evenly spread, the centre is the centre
    code = vector_code(maps)
    assert code.shape == (1, 10)
    mean = 4 / 9
    deviation = math.sqrt((9 + 1) / 9 - mean**2)
    row = (3 * -1 + 1 * 1) / 4  # rows are at -1, 0, 1
    expected = [3.0, -2.0, mean, -2.0, deviation, 0.0, row, 0.0, 1.0, 0.0]
    assert code[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_silent_channel_has_its_mass_at_the_centre() -> None:
    code = vector_code(torch.zeros(2, 3, 4, 5))
    assert torch.equal(code, torch.zeros(2, 15))


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-6, 1e-3, 1.0, 1e3]),
)
def test_a_code_is_what_it_is_said_to_be(shape: tuple[int, int, int, int], seed: int, size: float) -> None:
    maps = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu()  # half of it silent
    wide = maps.double()
    mass = wide.abs() + 1e-6
    row, column = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape[2:])
    total = mass.sum(dim=(2, 3))
    rows, columns = (mass.sum(dim=3) * row).sum(dim=2) / total, (mass.sum(dim=2) * column).sum(dim=2) / total
    sizes = torch.cat([wide.amax(dim=(2, 3)), wide.mean(dim=(2, 3)), wide.std(dim=(2, 3), correction=0)], dim=1)
    code, count = vector_code(maps).double(), sizes.shape[1]
    torch.testing.assert_close(code[:, :count], sizes, rtol=1e-5, atol=1e-5 * size)
    torch.testing.assert_close(code[:, count:], torch.cat([rows, columns], dim=1), rtol=0, atol=1e-5)


def test_a_map_of_one_place_has_no_centre_to_move() -> None:
    code = vector_code(torch.tensor([0.0, 1.0, 5.0]).view(3, 1, 1, 1))
    assert code[:, 3:].tolist() == [[-1.0, -1.0]] * 3


def test_centre_of_mass_follows_a_shift() -> None:
    maps = torch.zeros(4, 1, 4, 4)
    for i in range(4):
        maps[i, 0, i, 3 - i] = 5.0
    code = vector_code(maps)
    assert code[:, 3].tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1], abs=1e-4)
    assert code[:, 4].tolist() == pytest.approx([1, 1 / 3, -1 / 3, -1], abs=1e-4)


def test_a_flat_layer_is_its_own_code() -> None:
    dense = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(vector_code(dense), dense)


@pytest.mark.parametrize("shape", [(3, 4, 2), (3,), (3, 2, 4, 4, 4)])
def test_a_layer_that_gives_neither_maps_nor_vectors_is_refused(shape: tuple[int, ...]) -> None:
    shown = ", ".join(["B", *map(str, shape[1:])])
    with pytest.raises(LayerError) as caught:
        som("tokens").fit([Capture(torch.eye(3), {"tokens": torch.zeros(shape)})])
    assert str(caught.value).startswith("layer 'tokens': a map takes [B, C, H, W] or [B, D], got [B")
    assert str(caught.value).endswith(f"got [{shown}]: tap another layer") or len(shape) == 1


@pytest.mark.parametrize(
    ("shape", "of_input", "last"),
    [
        ((8, 8, 96), (3, 32, 32), True),
        ((1, 1, 96), (3, 32, 32), True),
        ((96, 8, 8), (3, 32, 32), False),
        ((96, 1, 1), (3, 32, 32), False),
        ((8, 8, 8), (3, 32, 32), False),
        ((7, 7, 8), (3, 28, 28), False),  # could be either: taken as it is said to be
        ((64, 64, 128), (1, 64, 128), False),
        ((32, 64, 64), (1, 64, 128), True),
        ((16, 33, 64), (1, 65, 128), False),
    ],
)
def test_channels_last_is_told_by_the_sides_of_the_input(
    shape: tuple[int, ...], of_input: tuple[int, int, int], last: bool
) -> None:
    detector, inputs = som("l"), Inputs(of_input, ("a", "b"))
    capture = Capture(torch.eye(2), {"l": torch.zeros(2, *shape)})
    if not last:
        detector.check(capture, inputs)
        return
    with pytest.raises(LayerError) as caught:
        detector.check(capture, inputs)
    assert str(caught.value) == (
        f"layer 'l': a map takes [B, C, H, W] or [B, D], got [B, {', '.join(map(str, shape))}], channels last: "
        "tap another layer"
    )


@given(st.integers(1, 64), st.integers(4, 40), st.integers(4, 40), st.integers(0, 3), st.sampled_from([(1, 0), (3, 1)]))
def test_no_convolution_looks_channels_last(
    channels: int, height: int, width: int, strides: int, kernel: tuple[int, int]
) -> None:
    size, padding = kernel
    layer = nn.Sequential(*(nn.Conv2d(1, 1, size, 2, padding) for _ in range(strides)))
    with torch.no_grad():
        found = layer(torch.zeros(1, 1, height, width)).expand(2, channels, -1, -1)
    assert not channels_last(found, (3, height, width))


# The torus


@pytest.mark.parametrize(
    ("a", "b", "side", "expected"),
    [
        ((0, 0), (0, 0), 5, 0.0),
        ((0, 0), (0, 4), 5, 1.0),  # across the seam
        ((0, 0), (4, 4), 5, math.sqrt(2)),
        ((1, 1), (3, 1), 5, 2.0),
        ((0, 0), (3, 0), 6, 3.0),  # half-way round either way
        ((1, 5), (4, 0), 6, math.sqrt(9 + 1)),
        ((0.5, 0), (3.75, 0), 4, 0.75),  # class centres lie between units
    ],
)
def test_torus_distance_by_hand(a: tuple[float, float], b: tuple[float, float], side: int, expected: float) -> None:
    first, second = torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)
    assert float(torus_distance(first, second, side)) == pytest.approx(expected)
    assert float(torus_distance(second, first, side)) == pytest.approx(expected)


def test_torus_distance_is_the_nearest_of_nine_copies() -> None:
    side = 5
    positions = grid_positions(side)
    assert positions.shape == (25, 2)
    assert positions[7].tolist() == [1.0, 2.0]
    for a in positions:
        for b in positions:
            copies = [b + torch.tensor([i * side, j * side]) for i in (-1, 0, 1) for j in (-1, 0, 1)]
            nearest = min(float((copy - a).norm()) for copy in copies)
            assert float(torus_distance(a, b, side)) == pytest.approx(nearest)
            assert float((a + torus_offset(a, b, side) - b).remainder(side).abs().max()) == 0.0


def density(side: int, hits: dict[tuple[int, int], float]) -> Tensor:
    grid = torch.zeros(side, side)
    for position, count in hits.items():
        grid[position] = count
    return grid.flatten()


@pytest.mark.parametrize(
    ("side", "hits", "expected"),
    [
        (6, {(2, 3): 4}, (2.0, 3.0)),
        (6, {(1, 2): 1, (3, 2): 1}, (2.0, 2.0)),
        (6, {(0, 2): 1, (5, 2): 1}, (5.5, 2.0)),  # across the seam, not at 2.5
        (6, {(0, 0): 3, (5, 0): 1}, (5.75, 0.0)),
        (8, {(7, 7): 1, (7, 0): 1, (0, 7): 1, (0, 0): 1}, (7.5, 7.5)),
        (8, {(1, 6): 2, (1, 7): 1, (1, 0): 1}, (1.0, 6.75)),
    ],
)
def test_class_centre_by_hand(side: int, hits: dict[tuple[int, int], float], expected: tuple[float, float]) -> None:
    centre = class_center(density(side, hits), side)
    assert float(torus_distance(centre, torch.tensor(expected), side)) < 1e-5
    assert bool((centre >= 0).all()) and bool((centre < side + 1e-5).all())


def test_class_centre_does_not_depend_on_where_the_torus_is_cut() -> None:
    side = 7
    hits = {(1, 2): 5.0, (2, 2): 2.0, (1, 3): 3.0, (0, 1): 1.0}
    centre = class_center(density(side, hits), side)
    for shift in range(side):
        moved = {((row + shift) % side, (column + 3 * shift) % side): n for (row, column), n in hits.items()}
        expected = centre + torch.tensor([shift, 3 * shift])
        assert float(torus_distance(class_center(density(side, moved), side), expected, side)) < 1e-4


# Training


def on_a_torus(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Angles [N, 2] and their code (cos a, sin a, cos b, sin b): the topology of the map itself."""
    angles = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * 2 * math.pi
    return angles, torch.cat([angles.cos(), angles.sin()], dim=1)[:, [0, 2, 1, 3]]


def trained_map(codes: Tensor, side: int, chunk: int = 2048, **options: Any) -> TorusMap:
    made = TorusMap(side)
    chosen = SelfOrganizingMapOptions.model_validate({"map_layers": ("a",), "side": side, **options})
    made.train_units(codes, epochs=chosen.epochs, radius_end=chosen.radius_end, seed=chosen.seed, chunk=chunk)
    return made


def best_units(made: TorusMap, codes: Tensor) -> Tensor:
    return made.distances(made.standardise(codes)).argmin(dim=1)


@pytest.mark.parametrize("side", [8, 10])
def test_a_planted_torus_is_recovered(side: int) -> None:
    """Up to a twist that some starts freeze in (in any batch SOM); the least quantization error tells them apart."""
    _, codes = on_a_torus(1500, seed=10)
    angles, fresh = on_a_torus(400, seed=11)
    maps = [trained_map(codes, side, epochs=30, seed=seed) for seed in range(6)]
    made = min(maps, key=lambda each: each.quality(each.standardise(codes))[0])
    quantization, topographic = made.quality(made.standardise(fresh))
    assert topographic < 0.01
    assert all(each.quality(each.standardise(fresh))[1] < 0.2 for each in maps)  # at worst one twist
    untrained = TorusMap(side)
    untrained.mean, untrained.scale, untrained.units = made.mean, made.scale, made.standardise(codes[: side * side])
    untrained.widen()
    random_quantization, random_topographic = untrained.quality(made.standardise(fresh))
    assert quantization < 1.1 * random_quantization
    assert random_topographic > 0.5
    # Neighbouring inputs land on neighbouring units, wherever they are: no seam.
    positions = grid_positions(side)
    nudged = torch.cat([(angles + 0.15).cos(), (angles + 0.15).sin()], dim=1)[:, [0, 2, 1, 3]]
    step = torus_distance(positions[best_units(made, fresh)], positions[best_units(made, nudged)], side)
    assert float((step <= math.sqrt(2) + 1e-6).double().mean()) > 0.99
    # And far ones far: the distance on the map follows the distance on the planted torus.
    gap = torch.remainder(angles[:200] - angles[200:] + math.pi, 2 * math.pi) - math.pi
    on_map = torus_distance(positions[best_units(made, fresh[:200])], positions[best_units(made, fresh[200:])], side)
    assert float(torch.corrcoef(torch.stack([gap.norm(dim=1), on_map]))[0, 1]) > 0.9
    assert made.units.shape == (side * side, 4)


def test_one_batch_update_is_its_formula() -> None:
    """With a radius that stays at side / 2, one more epoch is one update from the units of the run before."""
    side, radius = 4, 2.0
    codes = torch.randn(60, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 5 + 100
    # Three epochs, not many: with this radius the map contracts, and ties between units would soon decide.
    before = trained_map(codes, side, epochs=1, radius_end=radius, seed=2)
    after = trained_map(codes, side, epochs=2, radius_end=radius, seed=2)
    z = (codes - codes.mean(dim=0)) / codes.std(dim=0, correction=0)
    torch.testing.assert_close(before.standardise(codes), z, atol=1e-9, rtol=0)
    expected = torch.zeros_like(before.units)
    positions = grid_positions(side).double()
    bmu = [min(range(16), key=lambda u: float((row - before.units[u]).norm())) for row in z]
    for u in range(side * side):
        weights = [
            math.exp(-(float(torus_distance(positions[u], positions[b], side)) ** 2) / (2 * radius**2)) for b in bmu
        ]
        expected[u] = sum((n * row for n, row in zip(weights, z, strict=True)), torch.zeros(3).double()) / sum(weights)
    torch.testing.assert_close(after.units, expected, atol=1e-6, rtol=1e-6)


def test_sums_over_chunks_are_the_sums_over_the_whole() -> None:
    _, codes = on_a_torus(300, seed=5)
    whole = trained_map(codes.double(), 5, epochs=6)
    pieces = trained_map(codes.double(), 5, epochs=6, chunk=17)
    torch.testing.assert_close(pieces.units, whole.units, atol=1e-9, rtol=0)
    torch.testing.assert_close(pieces.mean, whole.mean)
    torch.testing.assert_close(pieces.scale, whole.scale)


def test_quality_by_hand() -> None:
    """A 4 x 4 torus, units at their own grid positions: best units that touch across the seam are neighbours."""
    made = TorusMap(4)

    def place(units: Tensor) -> None:
        made.units = units
        made.widen()

    place(grid_positions(4))
    for point, error in (((0.1, 0.0), 0.1), ((1.4, 2.0), 0.4)):
        quantization, topographic = made.quality(torch.tensor([point]))
        assert topographic == 0.0
        assert quantization == pytest.approx(error)
    place(torch.remainder(made.units + 2, 4))  # now units of rows 3 and 0 are the nearest to row 1.5
    assert made.quality(torch.tensor([[1.5, 2.0]]))[1] == 0.0
    # Swap two units so that the nearest two of (0, 0.4) lie two apart on the grid.
    units = grid_positions(4)
    units[[1, 10]] = units[[10, 1]]
    place(units)
    quantization, topographic = made.quality(torch.tensor([[0.0, 0.4], [3.0, 3.1]]))
    assert topographic == 0.5
    assert quantization == pytest.approx(0.25)


# The detector


def blobs(count: int, seed: int, spread: float = 0.3) -> Capture:
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randint(4, (count,), generator=generator)
    centres = torch.randn(4, 6, generator=torch.Generator().manual_seed(77)) * 2
    dense = centres[predicted] + spread * torch.randn(count, 6, generator=generator)
    maps = dense.view(count, 6, 1, 1) * torch.ones(3, 3) + 0.1 * torch.randn(count, 6, 3, 3, generator=generator)
    return capture_of({"a": maps, "b": dense}, predicted.tolist(), 4)


@pytest.fixture(scope="module")
def fitted() -> SelfOrganizingMap:
    return som("a", "b", side=5, epochs=10).fit(split(blobs(600, 0), [250, 350]))


def test_bmu_distance_and_score_by_a_loop(fitted: SelfOrganizingMap) -> None:
    fresh = blobs(40, 1)
    reading = fitted.read(fresh)
    total = torch.zeros(40, dtype=torch.float64)
    training = blobs(600, 0)
    for layer in ("a", "b"):
        made = map_of(fitted, layer)
        codes = vector_code(fresh.activations[layer])
        z = (codes - made.mean) / made.scale
        distances = torch.stack([(z[:, None] - made.units[None]).norm(dim=2)[i] for i in range(40)])
        nearest = distances.min(dim=1).values
        torch.testing.assert_close(reading.components[f"bmu_distance:{layer}"], nearest, atol=1e-5, rtol=1e-5)
        clean = made.distances(made.standardise(vector_code(training.activations[layer]))).min(dim=1).values
        for i in range(40):
            total[i] += (len(clean) + 1) / (1 + int((clean >= nearest[i]).sum()))
        # Class-aware: among the units most of whose training hits are the predicted class's.
        winner = made.distances(made.standardise(vector_code(training.activations[layer]))).argmin(dim=1)
        hits = torch.zeros(25, 4)
        for unit, label in zip(winner.tolist(), training.predicted.tolist(), strict=True):
            hits[unit, label] += 1
        assert torch.equal(made.hits.float(), hits)
        for i in range(40):
            c = int(fresh.predicted[i])
            own = [u for u in range(25) if hits[u].sum() > 0 and hits[u, c] == hits[u].max()]
            expected = min(float(distances[i, u]) for u in own) - float(nearest[i])
            assert float(reading.components[f"class_distance:{layer}"][i]) == pytest.approx(expected, abs=1e-4)
    # Layers are combined by their ranks among clean distances (kept at a thousand quantiles), not by raw distances:
    # -log of the harmonic mean of the ranks.
    typical = (reading.evidence["p"] > 0.02).all(dim=1)  # the quantiles resolve no finer in the tail
    assert int(typical.sum()) > 30
    torch.testing.assert_close(reading.score.double()[typical], (total / 2).log()[typical], atol=0.06, rtol=0.0)


def test_what_lies_off_the_map_scores_higher(fitted: SelfOrganizingMap) -> None:
    fresh, between = blobs(200, 2), blobs(200, 3, spread=1.2)
    assert auroc(fitted.score(fresh), fitted.score(between)) > 0.9
    # The wrong class in the right place: the distance stays, the class-aware one tells.
    wrong = Capture(fresh.logits.roll(1, dims=1), fresh.activations)
    torch.testing.assert_close(fitted.score(wrong), fitted.score(fresh))
    clean, off = (fitted.components(c)["class_distance:b"] for c in (fresh, wrong))
    assert clean.min() >= 0
    assert auroc(clean, off) > 0.95


def test_farther_is_never_less_suspicious(fitted: SelfOrganizingMap) -> None:
    start = blobs(1, 4)

    def score(step: float) -> float:
        off = {layer: start.activations[layer] + step for layer in ("a", "b")}
        return float(fitted.score(Capture(start.logits, off)))

    scores = [score(step) for step in (0.0, 20.0, 200.0)]
    assert scores[0] < scores[1] <= scores[2]


def test_evidence_names_unit_and_distance(fitted: SelfOrganizingMap) -> None:
    fresh = blobs(2, 5)
    explained = fitted.explain(fresh)[1]
    for entry in explained["layers"]:
        row, column = entry["unit"]
        made = map_of(fitted, entry["layer"])
        code = made.standardise(vector_code(fresh.activations[entry["layer"]]))[1]
        assert float((code - made.units[5 * row + column]).norm()) == pytest.approx(entry["distance"], abs=1e-3)
        assert 0 < entry["clean_share_farther"] <= 1
    assert [entry["layer"] for entry in explained["layers"]] == ["a", "b"]


def test_ownership_by_hand() -> None:
    made = TorusMap(2)
    made.hits = torch.tensor([[5, 1, 0, 0], [2, 2, 0, 0], [0, 0, 0, 0], [4, 3, 0, 1]])
    made.settle()
    yes, no = True, False
    # Class 0: units 0, 1 (a tie), 3. Class 1: unit 1. Class 2: never predicted, owns all. Class 3: owns none, so
    # where it hit most. Unit 2 was hit by nobody.
    expected = [[yes, no, yes, no], [yes, yes, yes, no], [no, no, yes, no], [yes, no, yes, yes]]
    assert made.owned.tolist() == expected


def test_a_class_never_predicted_is_no_evidence(fitted: SelfOrganizingMap) -> None:
    training = blobs(600, 0)
    with_fifth = Capture(torch.nn.functional.pad(training.logits, (0, 1), value=-9.0), training.activations)
    detector = som("b", side=4, epochs=4).fit([with_fifth])
    fresh = blobs(5, 6)
    fifth = Capture(torch.nn.functional.pad(fresh.logits, (0, 1), value=99.0), fresh.activations)
    reading = detector.read(fifth)
    assert reading.components["class_distance:b"].tolist() == [0.0] * 5
    assert torch.isfinite(reading.score).all()


def test_hits_merge_and_other_units_are_refused(fitted: SelfOrganizingMap) -> None:
    merged = copy.deepcopy(fitted).merge(copy.deepcopy(fitted))
    assert torch.equal(map_of(merged, "a").hits, 2 * map_of(fitted, "a").hits)
    with pytest.raises(BundleError, match="hold different units: train once, then count hits on every shard"):
        som("a", "b", side=5, epochs=10, seed=1).fit([blobs(600, 0)]).merge(fitted)


def test_seed_decides_and_blocks_do_not(fitted: SelfOrganizingMap) -> None:
    again = som("a", "b", side=5, epochs=10).fit([blobs(600, 0)])
    other = som("a", "b", side=5, epochs=10, seed=9).fit([blobs(600, 0)])
    fresh = blobs(50, 7)
    torch.testing.assert_close(again.score(fresh), fitted.score(fresh), atol=1e-5, rtol=0)
    assert not torch.equal(map_of(other, "b").units, map_of(fitted, "b").units)


def test_zero_and_constant_activations_never_give_nan() -> None:
    data = blobs(30, 8)
    partly = data.activations["b"].clone()
    partly[:, :3] = 0.0  # numbers that never vary
    detector = som("a", "b", side=3, epochs=4).fit([Capture(data.logits, {"a": data.activations["a"], "b": partly})])
    zeros = Capture(data.logits[:2], {"a": torch.zeros(2, 6, 3, 3), "b": torch.zeros(2, 6)})
    for capture in (zeros, data):
        reading = detector.read(capture)
        assert torch.isfinite(reading.score).all()
        assert all(torch.isfinite(values).all() for values in reading.components.values())


def test_fewer_inputs_than_units() -> None:
    data = blobs(7, 9)
    detector = som("b", side=5, epochs=4).fit([data])
    assert torch.isfinite(detector.score(data)).all()
    assert map_of(detector, "b").units.shape == (25, 6)


def test_what_cannot_be_fitted_or_asked() -> None:
    data = blobs(30, 10)
    unfitted = som("a", "b", side=3)
    text = r"SelfOrganizingMap is not fitted: call SelfOrganizingMap\.fit\(stream\) or load it from a bundle first"
    for ask in (unfitted.score, unfitted.components, unfitted.explain):
        with pytest.raises(NotFittedError, match=text):
            ask(data)
    with pytest.raises(DataError, match="the data stream is empty: expected at least one input"):
        unfitted.fit([])
    silent = Capture(data.logits, {"a": torch.zeros(30, 6, 3, 3), "b": data.activations["b"]})
    with pytest.raises(LayerError, match="layer 'a' is the same for every input: it never fires; tap another layer"):
        unfitted.fit([silent])


def test_scores_alone_equal_scores_in_a_batch(trained: Trained) -> None:
    (capture,) = trained.captures("evaluate", 1000)
    detector = trained.detectors["self_organizing_map"]
    batch = detector.score(capture)
    alone = torch.cat([detector.score(capture.select(torch.tensor([i]))) for i in range(64)])
    torch.testing.assert_close(alone, batch[:64], atol=1e-5, rtol=0)


def of_two_classes(count: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Codes that vary by 1 in their first half, by 1% of it in their second, about two means."""
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.arange(count) % 2
    spread = torch.cat([torch.ones(width // 2), torch.full((width - width // 2,), 0.01)])
    means = torch.randn(2, width, generator=generator)
    return means[predicted] + spread * torch.randn(count, width, generator=generator), predicted


def with_axes(codes: Tensor, predicted: Tensor) -> TorusMap:
    made = TorusMap(2)
    made.mean, made.scale = torch.zeros(codes.shape[1]), torch.ones(codes.shape[1])
    made.find_minor_axes(codes, predicted, 2)
    return made


def test_minor_axes_are_those_in_which_a_class_hardly_varies() -> None:
    codes, predicted = of_two_classes(4000, 10, 0)
    made = with_axes(codes, predicted)
    assert made.minor_axes.shape == (10, 5)
    along = made.minor_distances(codes, predicted)
    assert float(along.square().mean()) == pytest.approx(5, rel=0.02), "a Mahalanobis distance in five dimensions"
    major, minor = codes.clone(), codes.clone()
    major[:, 0] += 0.1
    minor[:, 9] += 0.1
    assert float((made.minor_distances(major, predicted) - along).abs().median()) < 0.2
    assert float(made.minor_distances(minor, predicted).median()) > 9, "ten of its standard deviations"
    other = made.minor_distances(codes, 1 - predicted)
    assert float(other.median()) > 20, "it goes by the predicted class's mean"


@pytest.mark.parametrize("count", [6, 8, 14, 20, 200])
def test_minor_axes_have_variance_however_few_the_codes(count: int) -> None:
    """Of fewer codes than numbers some axes have none: what lies along them is rounding alone."""
    codes, predicted = of_two_classes(count, 20, 3)
    made = with_axes(codes, predicted)
    expected = 10 if count == 200 else (count - 2 + 1) // 2 if count <= 12 else count - 2 - 10
    assert made.minor_axes.shape == (20, max(1, expected))
    along = made.minor_distances(codes, predicted)
    assert float(along.square().mean()) == pytest.approx(made.minor_axes.shape[1], rel=0.02)
    noise = 1e-6 * torch.randn(codes.shape, generator=torch.Generator().manual_seed(0))
    assert float((made.minor_distances(codes + noise, predicted) - along).abs().max()) < 1e-2


def test_minor_axes_of_codes_that_do_not_vary_within_a_class_tell_nothing() -> None:
    codes, predicted = of_two_classes(2, 6, 3)
    made = with_axes(codes, predicted)
    assert torch.equal(made.minor_distances(codes, predicted), torch.zeros(2))
    assert torch.equal(made.minor_distances(codes + 1, predicted), torch.zeros(2))


def test_minor_axes_of_wide_codes_lie_among_some_of_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, predicted = of_two_classes(2000, 40, 1)
    monkeypatch.setattr(torus_map, "MOST_VARYING", 12)
    made = with_axes(codes, predicted)
    drawn = made.minor_axes.abs().sum(dim=1).nonzero()[:, 0]
    assert made.minor_axes.shape == (40, 6)
    assert len(drawn) == 12
    narrow = with_axes(codes[:, drawn], predicted)
    torch.testing.assert_close(
        made.minor_distances(codes, predicted), narrow.minor_distances(codes[:, drawn], predicted), rtol=1e-3, atol=1e-3
    )
    assert torch.equal(with_axes(codes, predicted).minor_axes, made.minor_axes), "drawn alike every time"


def test_an_epochs_sums_add_up_over_shards(fitted: SelfOrganizingMap) -> None:
    """Calibration on several machines: each sums its shard, one adds up and moves the units."""
    layer_map = next(iter(fitted.layer_maps().values()))
    codes = torch.randn(90, layer_map.units.shape[1], generator=torch.Generator().manual_seed(3))
    whole, hits = layer_map.batch_sums(codes)
    shards = [layer_map.batch_sums(part) for part in codes.split([20, 45, 25])]
    torch.testing.assert_close(torch.stack([sums for sums, _ in shards]).sum(dim=0), whole)
    assert torch.equal(torch.stack([count for _, count in shards]).sum(dim=0), hits)
    assert hits.sum() == 90


def test_quantization_beside_minisom(trained: Trained) -> None:
    """MiniSom, another's, on a flat grid of as many units over the same digit codes: neither is much worse."""
    images, _ = trained.part("train")
    tap = Tap(trained.classifier, ["fc1"], trained.preprocessing.normalize)
    with torch.no_grad():
        capture = tap(images)
    detector = SelfOrganizingMap(SelfOrganizingMapOptions(map_layers=("fc1",), side=8)).fit([capture])
    ours = detector.layer_maps()["fc1"]
    codes = ours.standardise(capture.flat("fc1"))
    minisom = MiniSom(8, 8, codes.shape[1], sigma=2.0, learning_rate=0.5, random_seed=0)
    minisom.random_weights_init(codes.numpy())
    minisom.train(codes.numpy(), 20 * len(codes), random_order=True)
    theirs = float(minisom.quantization_error(codes.numpy()))
    assert ours.quality(codes)[0] == pytest.approx(theirs, rel=0.1)
