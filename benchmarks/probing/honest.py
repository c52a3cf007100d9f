"""Honest clients, who send frames of real images: most are of a scene that goes on.

It is noisy, shaken, dimmed or compressed, its light settles, hunts, flickers or pulses, it is drawn on, or something
moves about in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import askance
from askance.calibration.images import Images
from askance.calibration.progress import track
from askance.service.probing.fingerprints import thinned
from askance.service.probing.watch import Watch

BATCH = 256
KINDS = (
    "fresh",
    "still",
    "shaken",
    "dimmed",
    "settling",
    "hunting",
    "flickering",
    "pulsing",
    "again",
    "drawn",
    "moving",
    "compressed",
)
NOISY = ("still", "shaken", "dimmed", "settling", "hunting", "moving", "compressed")
DWELLS = (30, 300)  # frames of a scene, on average: of some, and of the others
SHAKEN = 28  # a shaken camera moves by that part of an image's side, to the next pixel
HONEST_CLIENTS = 1000
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Honest:
    """What became of honest clients.

    Attributes:
        questions: how many they asked.
        clients: how many there were.
        named: how many were, by kind of frames and technique.
        greatest: what the bets against them came to at most, the natural logarithm, by technique.
    """

    questions: int
    clients: int
    named: dict[str, int]
    greatest: dict[str, float]


def frames(images: Bytes, rng: np.random.Generator) -> Iterator[tuple[str, Bytes]]:
    """One scene's frames, each with the kind of the scene, uint8 [C, H, W]."""
    kind = KINDS[rng.integers(len(KINDS))]
    scene = images[rng.integers(len(images))] * rng.uniform(0.8, 1.0)
    count, noise = 1 if kind == "fresh" else int(rng.geometric(1 / rng.choice(DWELLS))), rng.uniform(0, 6)
    rate, strength, side = rng.uniform(0.3, 0.8), rng.uniform(0.1, 0.5), images.shape[2]
    high = 3 * side // 4
    at = rng.integers(0, high, 2)
    for place in range(min(count, 3) if kind == "again" else count):
        frame = scene
        if kind == "shaken":
            far = round(side / SHAKEN)
            frame = np.roll(frame, tuple(rng.integers(-far, far + 1, 2)), (1, 2))
        elif kind == "dimmed":
            frame = frame * (1 - 0.4 * place / count)
        elif kind == "settling":
            frame = frame * (1 - strength * rate**place)
        elif kind == "hunting":
            frame = frame * (1 - strength * (-rate) ** place)
        elif kind == "flickering":
            frame = frame * (1 if place % 2 else 1 - strength / 3)
        elif kind == "pulsing":
            frame = frame * (1 - strength * rng.random())
        elif kind in ("drawn", "moving"):
            at = rng.integers(0, high, 2) if kind == "drawn" else np.clip(at + rng.integers(-1, 2, 2), 0, high)
            frame = frame.copy()
            frame[:, at[0] : at[0] + side // 4, at[1] : at[1] + side // 4] = 255 * strength
            if kind == "drawn":
                scene = frame
        if kind in NOISY:
            frame = frame + rng.normal(0, noise, frame.shape)
        yield kind, _compressed(frame, rng) if kind == "compressed" else _rounded(frame)


def _rounded(frame: NDArray[np.float64]) -> Bytes:
    return np.clip(np.rint(frame), 0, 255).astype(np.uint8)


def _compressed(frame: NDArray[np.float64], rng: np.random.Generator) -> Bytes:
    """As it comes out of a JPEG file of some quality."""
    file, pixels = BytesIO(), _rounded(frame).transpose(1, 2, 0)
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(
        file, "JPEG", quality=int(rng.integers(50, 96))
    )
    found = np.asarray(Image.open(file))
    return found.reshape(pixels.shape).transpose(2, 0, 1)


def honest(bundle: Path, images: Images, questions: int, seed: int = 0) -> Honest:
    """Have honest clients ask, in no order."""
    rng, watch, pixels = np.random.default_rng(seed), Watch(3600, 2**27), images.x.numpy()
    scenes: dict[int, Iterator[tuple[str, Bytes]]] = {}
    named, greatest = Counter[str](), dict[str, float]()

    def asked(client: int) -> tuple[str, Bytes]:
        while True:
            found = next(scenes.get(client, iter(())), None)
            if found is not None:
                return found
            scenes[client] = frames(pixels, rng)

    with askance.open(bundle) as screen:
        for _ in track(range(0, questions, BATCH), f"{questions} honest questions"):
            who = rng.integers(HONEST_CLIENTS, size=BATCH).tolist()
            sent = [asked(client) for client in who]
            answers = screen([frame for _, frame in sent])
            for client, (kind, frame), answer in zip(who, sent, answers, strict=True):
                assert answer.prediction is not None
                assert answer.verdict is not None
                for suspect in watch.see(
                    f"c{client}",
                    thinned(np.divide(frame, 255, dtype=np.float32)),
                    answer.prediction.index,
                    answer.verdict,
                ):
                    named[f"{kind}: {suspect.technique.value}"] += 1
            evidence = [one.evidence for one in watch._clients.values()]
            evidence += [one.evidence for one in watch._families._families.values()]
            for one in evidence:
                for technique, wealth in one.wealth.items():
                    greatest[technique.value] = max(greatest.get(technique.value, 0.0), round(wealth, 1))
    return Honest(questions, HONEST_CLIENTS, dict(named), greatest)
