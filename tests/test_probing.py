"""Clients that probe: fingerprints, bets and techniques by hand; and who is named, and who is not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from askance.service.probing.evidence import BETS, HONEST, Hits
from askance.service.probing.families import OVERHEAD_BYTES, REMEMBERED, Families, near
from askance.service.probing.fingerprints import KEPT, MOST_NUMBERS, Fingerprints, thinned
from askance.service.probing.techniques import Technique, bisects, pairs, square
from askance.service.probing.watch import Suspect, Watch

Image = NDArray[np.uint8]


def scene(seed: int, side: int = 16, channels: int = 1) -> Image:
    """A picture that no other seed's is like."""
    return np.random.default_rng(seed).integers(20, 236, (channels, side, side), dtype=np.uint8)


def moved(image: Image, by: NDArray[np.float64]) -> Image:
    """With something added, as a camera or an attacker does."""
    return np.clip(np.round(image + by), 0, 255).astype(np.uint8)


class Clock:
    """Seconds, by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# --- fingerprints ---


def prints_of(image: Image) -> Fingerprints:
    return Fingerprints(len(thinned(image)))


def common(one: Image, other: Image, prints: Fingerprints) -> float:
    return len(np.intersect1d(prints.of(thinned(one)), prints.of(thinned(other)))) / KEPT


@given(seed=st.integers(0, 50), channels=st.sampled_from([1, 3]), side=st.sampled_from([12, 28, 224]))
def test_images_that_are_nearly_the_same_share_most_hashes_and_others_none(seed: int, channels: int, side: int) -> None:
    image = scene(seed, side, channels)
    prints, near = prints_of(image), image.copy()
    near[:, : side // 8, : side // 8] ^= 255  # a part becomes something else
    assert common(image, image, prints) == 1
    assert common(image, near, prints) > 0.5
    assert common(image, scene(seed + 1000, side, channels), prints) < 0.1


def test_a_hash_is_of_a_segment_wherever_it_stands() -> None:
    image = np.zeros((1, 1, 200), np.uint8)
    image[..., 60:75] = 100
    elsewhere = np.roll(image, 37, 2)
    assert common(image, elsewhere, prints_of(image)) * KEPT == len(prints_of(image).of(thinned(image))) == KEPT


def test_fingerprints_are_of_a_secret_key() -> None:
    first, second = prints_of(scene(0)), prints_of(scene(0))
    assert len(np.intersect1d(first.of(thinned(scene(0))), second.of(thinned(scene(0))))) == 0
    assert len(Fingerprints(4).of(np.zeros(4, np.uint8))) == 1  # smaller than a segment
    assert len(Fingerprints(400).of(np.full(400, 255, np.uint8))) == 1  # of one colour


def test_large_images_are_thinned() -> None:
    assert len(thinned(scene(0, 36, 3))) == 3 * 36**2
    large = scene(0, 224, 3)
    assert thinned(large).tolist() == large[:, ::7, ::7].transpose(1, 2, 0).reshape(-1).tolist()
    assert len(thinned(large)) == 3 * 32**2 <= MOST_NUMBERS


# --- evidence ---


def test_a_bet_by_hand() -> None:
    bet = Hits(0.1, (0.5,))
    bet.see(hit=True)
    assert bet.log_wealth == pytest.approx(math.log(5))
    bet.see(hit=False)
    assert bet.log_wealth == pytest.approx(math.log(5 * 5 / 9))
    both = Hits(0.1, (0.5, 0.2))
    both.see(hit=True)
    assert both.log_wealth == pytest.approx(math.log((5 + 2) / 2))


def test_nobody_is_safe_for_having_been_honest_before() -> None:
    bet = Hits(0.1, (0.5,))
    for _ in range(1000):
        bet.see(hit=False)
    assert bet.log_wealth == pytest.approx(math.log(5 / 9))
    bet.see(hit=True)
    assert bet.log_wealth == pytest.approx(math.log(5))


@pytest.mark.parametrize("technique", HONEST)
def test_a_bet_is_fair_at_the_honest_rate(technique: Technique) -> None:
    honest = HONEST[technique]
    assert all(bet > honest for bet in BETS[technique])
    for bet in BETS[technique]:
        mean = 0.0
        for hit in (False, True):
            made = Hits(honest, (bet,))
            made.see(hit=hit)
            mean += (honest if hit else 1 - honest) * math.exp(made.log_wealth)
        assert mean == pytest.approx(1)


@given(seed=st.integers(0, 5))
def test_honest_questions_come_to_little(seed: int) -> None:
    rng, bet = np.random.default_rng(seed), Hits(0.25, (0.4, 0.5))
    found = []
    for hit in rng.random(3000) < 0.25:
        bet.see(hit=bool(hit))
        found.append(bet.log_wealth)
    assert max(found) < 9  # on average once in 8,000


# --- techniques ---


def family(*images: NDArray[np.generic]) -> Image:
    return np.array([one.reshape(-1) for one in images]).astype(np.uint8)


def test_ways_that_are_halved_twice_are_seen_and_one_that_goes_on_is_not() -> None:
    start, way = np.zeros(64), np.arange(64.0)
    at = [start + share * 2 * way for share in (0.0, 0.5, 0.75, 0.625, 1.5)]
    assert bisects(family(*at[:4]))
    assert not bisects(family(*at[:3]))  # once
    assert not bisects(family(at[0], at[1], at[2], at[4]))  # further than before
    assert not bisects(family(*[start + share * way for share in range(4)]))  # as far


def noises(count: int, size: int = 100, sigma: float = 4.0) -> list[NDArray[np.float64]]:
    rng = np.random.default_rng(3)
    return [rng.normal(0, sigma, size) for _ in range(count)]


def test_pairs_are_seen_in_whatever_order_and_flickering_or_noise_is_not() -> None:
    base = np.full(100, 120.0)
    there = [np.round(base + noise) for noise in noises(8)]
    back = [np.round(base - noise) for noise in noises(8)]
    assert pairs(family(*there, back[0]))
    assert pairs(family(*itertools.chain(*zip(there[:4], back[:4], strict=True))))
    assert not pairs(family(*there))
    assert not pairs(family(*there[:3], back[0]))  # too few to stand out from
    flicker = [base * (1 if place % 2 else 0.9) for place in range(9)]
    assert not pairs(family(*flicker))
    assert not pairs(family(*[np.round(one * 0) for one in there], np.zeros(100)))  # where nothing shows both sides


def test_a_square_is_seen_and_noise_or_a_shift_or_a_light_is_not() -> None:
    image = scene(0).astype(np.int16)
    part = image.copy()
    part[:, 4:9, 4:9] += 10
    assert square(family(image, part)) is not None
    found = square(family(image, image[:, ::-1], part))  # the nearest of those before it counts
    assert found is not None
    assert found.sum() == 25
    assert square(family(image, image + 10)) is None  # all of it
    assert square(family(image, np.roll(image, 1, 2))) is None
    noisy = part.copy()
    noisy[:, 4:9, 4:9] += np.arange(25).reshape(1, 5, 5).astype(np.int16)
    assert square(family(image, noisy)) is None
    assert square(family(image)) is None


# --- families ---


def test_near_is_a_correlation_and_of_one_colour_the_same() -> None:
    image = scene(0).reshape(-1)
    rng = np.random.default_rng(0)
    others = np.array(
        [image, moved(image, rng.normal(0, 5, 256)), moved(image, rng.normal(0, 60, 256)), image // 2, 255 - image]
    )
    assert near(image, others).tolist() == [True, True, False, True, False]
    for one, other in zip(others, near(image, others), strict=True):
        assert (np.corrcoef(image, one)[0, 1] > 0.95) == other
    grey = np.full(256, 9, np.uint8)
    assert near(grey, np.array([grey, grey + 1, image])).tolist() == [True, False, False]
    assert near(image, np.array([grey])).tolist() == [False]


def test_families_are_forgotten_by_time_and_by_bytes() -> None:
    clock = Clock()
    families = Families(clock, 60, most_bytes=10 * (OVERHEAD_BYTES + 256))  # ten images of 256 numbers
    for seed in range(30):
        _, looks = families.add(scene(seed), 0, "a")
        assert looks == {}
    assert len(families) == 11  # and the last one
    one, looks = families.add(scene(29), 0, "a")
    assert (one.asked, looks) == (1, None)
    assert len(families) == 10
    clock.now = 61.0
    families.add(scene(99), 0, "a")
    assert len(families) == 1
    assert len(families._index) <= KEPT


def test_a_family_remembers_so_many_images_and_its_last_fingerprints() -> None:
    families, rng = Families(Clock(), 60, 2**26), np.random.default_rng(0)
    for _ in range(REMEMBERED + 5):
        found, _ = families.add(moved(scene(0, 28), rng.normal(0, 2, (1, 28, 28))), 0, "a")
    assert len(families) == 1
    assert found.asked == REMEMBERED + 5
    assert found.size == REMEMBERED * 28**2 + OVERHEAD_BYTES
    assert len(families._index) <= 4 * KEPT
    assert set(families._index) == {one for prints in found.prints for one in prints.tolist()}


def test_images_of_one_colour_are_of_a_family_with_none_but_themselves() -> None:
    families = Families(Clock(), 60, 2**26)
    for level in (0, 100, 255):
        families.add(np.full((1, 8, 8), level, np.uint8), 0, "a")
    families.add(scene(0, 8), 0, "a")
    assert len(families) == 4


# --- the watch ---


def named(watch: Watch, questions: Iterator[tuple[str, Image, int, bool]]) -> dict[str, tuple[Technique, int]]:
    """Who is named first by what, and after how many questions of all."""
    found: dict[str, tuple[Technique, int]] = {}
    for count, (client, image, label, adversarial) in enumerate(questions, 1):
        for suspect in watch.see(client, image, label, adversarial=adversarial):
            found.setdefault(suspect.client, (suspect.technique, count))
    return found


def halving(image: Image, other: Image, rounds: int, clients: int = 1) -> Iterator[tuple[str, Image, int, bool]]:
    """HopSkipJump's way: halve, ask about, step, and again."""
    rng, count = np.random.default_rng(0), 0
    for turn in range(rounds):
        low, high = 0.0, 0.4
        for _ in range(6):
            middle = (low + high) / 2
            wrong = bool(rng.random() < 0.5)
            low, high = (low, middle) if wrong else (middle, high)
            by: NDArray[np.float64] = middle * (other.astype(np.float64) - image) + turn
            yield f"c{count % clients}", moved(image, by), int(wrong), False
            count += 1
        for _ in range(6):
            yield (
                f"c{count % clients}",
                moved(image, by + rng.normal(0, 3, image.shape)),
                int(rng.random() < 0.5),
                False,
            )
            count += 1


def test_who_halves_ways_is_named_soon_and_by_his_technique() -> None:
    (found,) = named(Watch(60, 2**26), halving(scene(0), scene(1), 8)).items()
    assert found[0] == "c0"
    assert found[1][0] is Technique.BISECTION
    assert found[1][1] <= 60


def test_who_spreads_over_ten_names_is_named_by_all_of_them() -> None:
    found = named(Watch(60, 2**26), halving(scene(0), scene(1), 12, clients=10))
    assert set(found) == {f"c{place}" for place in range(10)}


def test_who_asks_in_pairs_is_named() -> None:
    rng, image = np.random.default_rng(0), scene(0)

    def asked() -> Iterator[tuple[str, Image, int, bool]]:
        for _ in range(30):
            noise = rng.normal(0, 3, image.shape)
            for side in (noise, -noise):
                yield "c", moved(image, side), 0, False

    assert named(Watch(60, 2**26), asked())["c"][0] is Technique.PAIRS


def test_who_changes_squares_is_named_and_a_clock_in_a_corner_is_not() -> None:
    rng, image = np.random.default_rng(0), scene(0)

    def squares(*, wander: bool) -> Iterator[tuple[str, Image, int, bool]]:
        for _ in range(60):
            by = np.zeros(image.shape)
            top, left = rng.integers(0, 12, 2) if wander else (0, 0)
            by[:, top : top + 4, left : left + 4] = rng.choice([-15, 15]) if wander else rng.integers(5, 15)
            yield "c", moved(image, by), 0, False

    assert named(Watch(60, 2**26), squares(wander=True))["c"][0] is Technique.SQUARES
    assert not named(Watch(60, 2**26), squares(wander=False))


def test_who_walks_along_a_boundary_is_named_and_a_camera_is_not() -> None:
    rng = np.random.default_rng(0)

    def frames(turning: float) -> Iterator[tuple[str, Image, int, bool]]:
        for place in range(400):
            image = scene(place // 100)
            yield "c", moved(image, rng.normal(0, 3, image.shape)), int(rng.random() < turning), False

    assert named(Watch(60, 2**26), frames(0.5))["c"][0] is Technique.BOUNDARY
    assert not named(Watch(60, 2**26), frames(0.1))


def test_who_asks_for_adversarial_images_is_named_and_who_asks_for_one_often_is_not() -> None:
    assert named(Watch(60, 2**26), (("c", scene(seed), 0, True) for seed in range(40)))["c"] == (Technique.UNUSUAL, 14)
    rng = np.random.default_rng(0)
    assert not named(
        Watch(60, 2**26), (("c", moved(scene(0), rng.normal(0, 2, (1, 16, 16))), 0, True) for _ in range(200))
    )
    assert not named(
        Watch(60, 2**26), ((f"c{place % 5}", scene(place), 0, rng.random() < 0.2) for place in range(2000))
    )


def test_who_tries_again_is_not_named() -> None:
    assert not named(Watch(60, 2**26), (("c", scene(place // 50), place % 2, False) for place in range(500)))


def test_a_client_is_named_once_in_a_while() -> None:
    clock = Clock()
    watch = Watch(60, 2**26, clock)

    def asks(seeds: range) -> list[Suspect]:
        return [one for seed in seeds for one in watch.see("c", scene(seed), 0, adversarial=True)]

    assert asks(range(30)) == [Suspect("c", Technique.UNUSUAL, 14)]
    clock.now = 59.0
    assert asks(range(30, 60)) == []
    clock.now = 61.0
    assert len(asks(range(60, 90))) == 1


def test_who_does_not_ask_for_long_is_forgotten() -> None:
    clock = Clock()
    watch = Watch(60, 2**26, clock)
    for seed in range(40):  # each after an hour
        clock.now += 3600
        assert watch.see("c", scene(seed), 0, adversarial=True) == []
