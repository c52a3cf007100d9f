"""Clients that probe: fingerprints, bets and techniques by hand; and who is named, and who is not."""

from __future__ import annotations

import io
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from askance.answers import Verdict
from askance.service.probing import lookout
from askance.service.probing.evidence import ODDS, Evidence
from askance.service.probing.families import OVERHEAD_BYTES, REMEMBERED, Families, near
from askance.service.probing.fingerprints import KEPT, MOST_NUMBERS, Fingerprints, thinned
from askance.service.probing.lines import Asked, Found, Options, line, read
from askance.service.probing.named import Named
from askance.service.probing.techniques import RESIDUES, Halvings, Sign, Technique, pairs, square
from askance.service.probing.watch import Suspect, Watch

Image = NDArray[np.uint8]


def scene(seed: int, side: int = 16, channels: int = 1) -> Image:
    """A picture that no other seed's is like."""
    return np.random.default_rng(seed).integers(20, 236, (channels, side, side), dtype=np.uint8)


def moved(image: Image, by: NDArray[np.float64]) -> Image:
    """With something added, as a camera or an attacker does."""
    return np.clip(np.round(image + by), 0, 255).astype(np.uint8)


def numbers_of(image: Image) -> Image:
    return thinned(np.divide(image, 255, dtype=np.float32))


class Clock:
    """Seconds, by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# --- fingerprints ---


def prints_of(image: Image) -> Fingerprints:
    return Fingerprints(len(numbers_of(image)))


def common(one: Image, other: Image, prints: Fingerprints) -> float:
    return len(np.intersect1d(prints.of(numbers_of(one)), prints.of(numbers_of(other)))) / KEPT


@given(seed=st.integers(0, 50), channels=st.sampled_from([1, 3]), side=st.sampled_from([12, 28, 224]))
def test_images_that_are_nearly_the_same_share_most_hashes_and_others_none(seed: int, channels: int, side: int) -> None:
    image = scene(seed, side, channels)
    prints, near = prints_of(image), image.copy()
    near[:, : side // 8, : side // 8] ^= 255  # a part becomes something else
    assert common(image, image, prints) == 1
    assert common(image, near, prints) > 0.5
    assert common(image, scene(seed + 1000, side, channels), prints) < 0.1


def test_a_segment_is_another_one_elsewhere_and_of_one_level_only_where_there_is_nothing_else() -> None:
    image = np.zeros((1, 1, 400), np.uint8)
    image[..., 100:300] = scene(0, 15)[..., :200].reshape(-1)[:200]
    prints = prints_of(image)
    assert common(image, image, prints) == 1
    assert common(image, np.roll(image, 10, 2), prints) <= 0.1
    black = np.zeros_like(image)
    assert common(black, black, prints) == 1
    assert common(image, black, prints) == 0


def test_fingerprints_are_of_a_secret_key() -> None:
    first, second = prints_of(scene(0)), prints_of(scene(0))
    assert len(np.intersect1d(first.of(numbers_of(scene(0))), second.of(numbers_of(scene(0))))) == 0
    for numbers in (1, 4, 12, 400):  # smaller than a segment, and of one colour
        assert 0 < len(Fingerprints(numbers).of(np.full(numbers, 255, np.uint8))) <= KEPT


def test_large_images_are_thinned() -> None:
    assert len(numbers_of(scene(0, 36, 3))) == 3 * 36**2
    large = scene(0, 224, 3)
    assert numbers_of(large).tolist() == large[:, ::7, ::7].transpose(1, 2, 0).reshape(-1).tolist()
    assert len(numbers_of(large)) == 3 * 32**2 <= MOST_NUMBERS


# --- evidence ---


def test_bets_by_hand() -> None:
    evidence, odds = Evidence(), ODDS[Sign.FLAGGED]
    assert (odds.honest, odds.bets) == (0.25, (0.5, 0.9))
    evidence.see({Sign.FLAGGED: True})
    assert evidence.wealth == {Technique.UNUSUAL: pytest.approx(math.log((0.5 / 0.25 + 0.9 / 0.25) / 2))}
    evidence.see({Sign.FLAGGED: False})
    first, second = 2 * 0.5 / 0.75, 3.6 * 0.1 / 0.75
    assert evidence.wealth == {Technique.UNUSUAL: pytest.approx(math.log((first + second) / 2))}
    assert evidence.sure(math.log(0.9)) == [Technique.UNUSUAL]
    assert evidence.sure(math.log(0.91)) == []


def test_signs_of_one_technique_are_one_bet() -> None:
    evidence, halved, turned = Evidence(), ODDS[Sign.HALVED], ODDS[Sign.TURNED]
    evidence.see({Sign.HALVED: True, Sign.TURNED: True, Sign.PAIRED: False})
    stakes = [
        (one / halved.honest) * (other / turned.honest) for one, other in zip(halved.bets, turned.bets, strict=True)
    ]
    assert evidence.wealth[Technique.BISECTION] == pytest.approx(math.log(sum(stakes) / 2))
    assert set(evidence.wealth) == {Technique.BISECTION, Technique.PAIRS}


def test_nobody_is_safe_for_having_been_honest_before() -> None:
    evidence, fresh = Evidence(), Evidence()
    for _ in range(1000):
        evidence.see({Sign.FLAGGED: False})
    for one in (evidence, fresh):
        one.see({Sign.FLAGGED: True})
    assert evidence.wealth == fresh.wealth


@pytest.mark.parametrize("sign", Sign)
def test_a_bet_is_fair_at_the_honest_rate(sign: Sign) -> None:
    honest = ODDS[sign].honest
    assert all(bet > honest for bet in ODDS[sign].bets)
    mean = 0.0
    for shows in (False, True):
        evidence = Evidence()
        evidence.see({sign: shows})
        (logged,) = evidence.wealth.values()
        mean += (honest if shows else 1 - honest) * math.exp(logged)
    assert mean == pytest.approx(1)


@given(seed=st.integers(0, 5))
def test_honest_questions_come_to_little(seed: int) -> None:
    rng, evidence = np.random.default_rng(seed), Evidence()
    found = []
    for shows in rng.random(3000) < 0.25:
        evidence.see({Sign.FLAGGED: bool(shows)})
        found.append(evidence.wealth[Technique.UNUSUAL])
    assert max(found) < 13  # on average once in 440,000


# --- techniques ---


def family(*images: NDArray[np.generic]) -> Image:
    return np.array([one.reshape(-1) for one in images]).astype(np.uint8)


def halvings(*shares: float, noise: float = 0.0, length: float = 200.0, target: float | None = None) -> list[bool]:
    """Whether each of some images on a way ends one that was halved; the answer turns at the target."""
    rng = np.random.default_rng(0)
    start, way = np.full(400, 10.0), length * rng.random(400) ** 0.1
    seen = Halvings()
    images = family(*(np.rint(start + share * way + rng.normal(0, noise, 400)).clip(0, 255) for share in shares))
    answers = [None, *(target is not None and share > target for share in shares)]
    return [seen.see(images[:count], answers[count - 1]) for count in range(1, len(images) + 1)]


TO_AND_FRO = (0, 1 / 2, 1 / 4, 3 / 8, 7 / 16)  # towards .42


def test_a_way_that_is_halved_to_and_fro_is_seen_once() -> None:
    assert halvings(*TO_AND_FRO[:4], target=0.42) == [False] * 4  # two halvings
    assert halvings(*TO_AND_FRO, target=0.42) == [False] * 4 + [True]
    assert halvings(*TO_AND_FRO, 13 / 32, target=0.42) == [False] * 4 + [True, False]
    assert sum(halvings(*TO_AND_FRO, *TO_AND_FRO, target=0.42)) == 2


def test_what_lights_and_cameras_do_is_no_halving() -> None:
    settling = [1 - 0.5**place for place in range(8)]
    assert not any(halvings(*settling, target=0.9))  # it does not turn back
    assert not any(halvings(*[0.6 + 0.3 * (-0.5) ** place for place in range(8)]))  # a control that hunts
    assert not any(halvings(*TO_AND_FRO))  # no answer sends it back
    assert not any(halvings(*TO_AND_FRO, target=0.3))  # the same answer sends it either way
    assert not any(halvings(*[share / 8 for share in range(8)], target=0.5))
    assert not any(halvings(*TO_AND_FRO, noise=1.5, target=0.42))
    assert not any(halvings(*TO_AND_FRO, length=8, target=0.42))  # less than a camera's noise
    assert not any(halvings(*np.random.default_rng(0).random(300), noise=1.0, target=0.5))


@pytest.mark.parametrize("turns", [False, True])
def test_half_a_step_to_the_last_bit_differs_by_its_roundings_alone(turns: bool) -> None:
    rng = np.random.default_rng(0)
    start, end = rng.integers(0, 256, (2, 200_000))
    at = (0, 1 / 2, 1 / 4) if turns else (0, 1 / 2, 3 / 4)
    first, second, third = (np.rint(start + share * (end - start) + rng.uniform(-0.5, 0.5, 200_000)) for share in at)
    sign = -1 if turns else 1
    residue = np.sqrt(np.mean(((third - second) - sign * (second - first) / 2) ** 2))
    assert 0.5 * RESIDUES[turns] < residue / np.sqrt(2) < RESIDUES[turns]


def noises(count: int, size: int = 100, sigma: float = 4.0) -> list[NDArray[np.float64]]:
    rng = np.random.default_rng(3)
    return [rng.normal(0, sigma, size) for _ in range(count)]


def test_pairs_are_seen_in_whatever_order_and_flickering_or_noise_is_not() -> None:
    base = np.full(100, 120.0)
    there = [np.round(base + noise) for noise in noises(12)]
    back = [np.round(base - noise) for noise in noises(12)]
    assert pairs(family(*there, back[0]))
    assert pairs(family(*itertools.chain(*zip(there[:6], back[:6], strict=True))))
    assert not pairs(family(*there))
    assert not pairs(family(*there[:3], back[0]))  # too few to stand out from
    flicker = [base * (1 if place % 2 else 0.9) for place in range(13)]
    assert not pairs(family(*flicker))
    assert not pairs(family(*[np.round(one * 0) for one in there], np.zeros(100)))  # where nothing shows both sides


def square_of(*images: NDArray[np.generic]) -> NDArray[np.bool_] | None:
    found = family(*images)
    return square(found, np.count_nonzero(found[:-1] != found[-1], axis=1))


def test_a_square_is_seen_and_noise_or_a_shift_or_a_light_is_not() -> None:
    image = scene(0).astype(np.int16)
    part, other = image.copy(), image.copy()
    part[:, 4:9, 4:9] += 10
    other[:, 10:14, 1:6] -= 10
    found = square_of(image, other, part)  # the last one is taken back
    assert found is not None
    assert found.sum() == 25
    assert square_of(image, part) is None  # drawn on
    assert square_of(image, other, image + 10) is None  # all of it
    assert square_of(image, other, np.roll(image, 1, 2)) is None
    noisy = part.copy()
    noisy[:, 4:9, 4:9] += np.arange(25).reshape(1, 5, 5).astype(np.int16)
    assert square_of(image, other, noisy) is None
    lit = image.copy()
    lit[:, 4:9, 4:9] += np.array([1, 2, 3, 4, 4]).astype(np.int16)
    assert square_of(image, other, lit) is None  # fainter at its edge


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
        _, looks = families.add(numbers_of(scene(seed)), 0, "a")
        assert looks == {}
    assert len(families) == 11  # and the last one
    one, looks = families.add(numbers_of(scene(29)), 0, "a")
    assert (one.asked, looks) == (1, None)
    assert len(families) == 10
    clock.now = 61.0
    families.add(numbers_of(scene(99)), 0, "a")
    assert len(families) == 1
    assert len(families._index) <= KEPT


def test_a_family_remembers_so_many_images_and_its_last_fingerprints() -> None:
    families, rng = Families(Clock(), 60, 2**26), np.random.default_rng(0)
    for _ in range(REMEMBERED + 5):
        found, _ = families.add(numbers_of(moved(scene(0, 28), rng.normal(0, 2, (1, 28, 28)))), 0, "a")
    assert len(families) == 1
    assert found.asked == REMEMBERED + 5
    assert found.size == REMEMBERED * 28**2 + OVERHEAD_BYTES
    assert len(families._index) <= 4 * KEPT
    assert set(families._index) == {one for prints in found.prints for one in prints.tolist()}


def test_images_of_another_size_are_of_another_bundle() -> None:
    families = Families(Clock(), 60, 2**26)
    families.add(numbers_of(scene(0, 8)), 0, "a")
    one, _ = families.add(numbers_of(scene(0, 9)), 0, "a", likely=1)
    assert (len(families), one.asked) == (1, 1)
    assert len(families._index) <= KEPT


def test_images_of_one_colour_are_of_a_family_with_none_but_themselves() -> None:
    families = Families(Clock(), 60, 2**26)
    for level in (0, 100, 255):
        families.add(np.full(64, level, np.uint8), 0, "a")
    families.add(numbers_of(scene(0, 8)), 0, "a")
    assert len(families) == 4


# --- the watch ---


def named(watch: Watch, questions: Iterator[tuple[str, Image, int, bool]]) -> dict[str, tuple[Technique, int]]:
    """Who is named first by what, and after how many questions of all."""
    found: dict[str, tuple[Technique, int]] = {}
    for count, (client, image, label, adversarial) in enumerate(questions, 1):
        for suspect in watch.see(
            client, numbers_of(image), label, Verdict.ADVERSARIAL if adversarial else Verdict.CLEAN
        ):
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


def test_who_looks_at_what_the_classifier_is_not_sure_of_is_not_named() -> None:
    rng = np.random.default_rng(0)
    assert not named(
        Watch(60, 2**26),
        (("c", moved(scene(0), rng.normal(0, 3, (1, 16, 16))), int(rng.random() < 0.5), False) for _ in range(1000)),
    )


def test_who_halves_one_way_and_then_asks_about_its_end_is_named() -> None:
    rng, image, other = np.random.default_rng(0), scene(0).astype(float), scene(1).astype(float)

    def asked(*, turning: float) -> Iterator[tuple[str, Image, int, bool]]:
        for share in (0.0, 0.2, 0.1, 0.15, 0.175):  # towards .17
            yield "c", moved(scene(0), share * (other - image)), int(share > 0.17), False
        for _ in range(150):
            yield "c", moved(scene(0), rng.normal(0, 3, image.shape)), int(rng.random() < turning), False

    found = named(Watch(60, 2**26), asked(turning=0.5))["c"]
    assert found[0] is Technique.BISECTION
    assert found[1] <= 100
    assert not named(Watch(60, 2**26), asked(turning=0.05))


def test_who_asks_for_adversarial_images_is_named_and_who_asks_for_one_often_is_not() -> None:
    assert named(Watch(60, 2**26), (("c", scene(seed), 0, True) for seed in range(40)))["c"] == (Technique.UNUSUAL, 14)
    rng = np.random.default_rng(0)
    assert not named(
        Watch(60, 2**26), (("c", moved(scene(0), rng.normal(0, 2, (1, 16, 16))), 0, True) for _ in range(200))
    )
    assert not named(
        Watch(60, 2**26), ((f"c{place % 5}", scene(place), 0, rng.random() < 0.2) for place in range(2000))
    )


def test_more_images_of_a_family_than_honest_ones_name_all_who_ask_for_them() -> None:
    rng = np.random.default_rng(0)

    def asked() -> Iterator[tuple[str, Image, int, bool]]:
        for place in range(40):
            client = "passer-by" if place == 3 else f"c{place % 2}"
            yield client, moved(scene(0), rng.normal(0, 3, (1, 16, 16))), 0, False

    found = named(Watch(60, 2**26, most_alike=30), asked())
    assert found == {"c0": (Technique.ALIKE, 31), "c1": (Technique.ALIKE, 31)}
    assert not named(Watch(60, 2**26), asked())


def test_who_tries_again_is_not_named() -> None:
    assert not named(Watch(60, 2**26), (("c", scene(place // 50), place % 2, False) for place in range(500)))


def test_a_client_is_named_once_in_a_while() -> None:
    clock = Clock()
    watch = Watch(60, 2**26, clock=clock)

    def asks(seeds: range) -> list[Suspect]:
        return [one for seed in seeds for one in watch.see("c", numbers_of(scene(seed)), 0, Verdict.ADVERSARIAL)]

    assert asks(range(30)) == [Suspect("c", Technique.UNUSUAL, 14)]
    clock.now = 59.0
    assert asks(range(30, 60)) == []
    clock.now = 61.0
    assert len(asks(range(60, 90))) == 1


def test_who_does_not_ask_for_long_is_forgotten() -> None:
    clock = Clock()
    watch = Watch(60, 2**26, clock=clock)
    for seed in range(40):  # each after an hour
        clock.now += 3600
        assert watch.see("c", numbers_of(scene(seed)), 0, Verdict.ADVERSARIAL) == []


# --- the process that looks ---


def test_what_is_asked_and_found_travels_as_it_is() -> None:
    asked, found = io.BytesIO(line(Options(60.0, 2**26))), io.BytesIO()
    asked.seek(0, io.SEEK_END)
    for seed in range(30):
        numbers = numbers_of(scene(seed, 4 + seed % 3))
        asked.write(line(Asked("a\nb", 1, Verdict.ADVERSARIAL, len(numbers))) + numbers.tobytes())
    asked.seek(0)
    lookout.main(asked, found)
    (text,) = found.getvalue().splitlines()
    said = read(text)
    assert isinstance(said, Found)
    assert replace(said.named, at=0.0) == Named("a\nb", Technique.UNUSUAL, 14, at=0.0)
    assert abs(said.named.at - time.time()) < 60
