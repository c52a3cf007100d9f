"""The attack suite: many attacks on many images, in pieces spread over the cores, each piece cached."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from askance.calibration.attacks import ATTACKS, Attack, PixelClassifier, perturb
from askance.calibration.cache import ImageCache
from askance.calibration.digests import json_digest, state_digest, tensor_digest
from askance.calibration.progress import say, track
from askance.classifiers import build_classifier
from askance.detectors.output import select_output
from askance.errors import CalibrationError
from askance.screening.preprocessing import Preprocessing

PIECE_IMAGES = 50  # batch mates share nothing but an attack's random numbers, which go by the piece
WORTH_PROCESSES_SECONDS = 20.0  # of work left, that pay for starting processes


@dataclass(frozen=True)
class Target:
    """The classifier under attack, by what builds it, so that a process elsewhere can.

    Attributes:
        factory, arguments, weights: as in `classifiers.build_classifier`; without a factory only this process can
            attack it.
        preprocessing: what stands between pixels and its input.
        classifier: what stands in for a factory; None where there is one.
        output: the part of the built classifier's answer that holds the logits, if it has parts.
    """

    factory: str | None
    arguments: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    preprocessing: Preprocessing
    classifier: nn.Module | None = None
    output: str | int | None = None

    def build(self) -> PixelClassifier:
        """The classifier in pixel space."""
        if self.factory is None:
            assert self.classifier is not None
            return PixelClassifier(self.classifier, self.preprocessing)
        built = build_classifier(self.factory, self.arguments, self.weights)
        return PixelClassifier(select_output(built, self.output), self.preprocessing)

    def identity(self) -> dict[str, Any]:
        """What attacked images depend on, JSON-ready."""
        return {
            "factory": str(self.classifier) if self.factory is None else self.factory,
            "arguments": dict(self.arguments),
            "weights": state_digest(self.weights),
            "preprocessing": self.preprocessing.model_dump(mode="json", include={"mean", "std"}),
            "versions": {name: version(name) for name in ("advertorch", "foolbox", "torch")},
        } | ({} if self.output is None else {"output": self.output})


@dataclass(frozen=True)
class AttackJob:
    """One attack on its images.

    Attributes:
        attack: which.
        images: float32 [N, C, H, W] in [0, 1].
        labels: [N], the true classes, or the targets if the attack aims.
    """

    attack: Attack
    images: Tensor
    labels: Tensor

    def pieces(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(the seed, images, labels) of each piece."""
        parts = zip(self.images.split(PIECE_IMAGES), self.labels.split(PIECE_IMAGES), strict=True)
        for i, (images, labels) in enumerate(parts):
            yield self.attack.seed * 1_000_003 + i, images, labels


_Piece = tuple[Attack, Tensor, Tensor, int]


def run(target: Target, jobs: Sequence[AttackJob], cache: ImageCache) -> list[Tensor]:
    """Run every attack; what the cache holds is not made again, and every piece made is cached at once.

    The images do not depend on how many cores there are, nor on what was cached.

    Returns:
        The attacked images of each, float32 [N, C, H, W] in [0, 1].

    Raises:
        CalibrationError: a process that makes them was ended.
    """
    identity = target.identity()
    results: list[list[Tensor | None]] = []
    todo: dict[tuple[int, int], tuple[str, _Piece]] = {}
    for i, job in enumerate(jobs):
        attack = _identity(job.attack)
        results.append([])
        for j, (seed, images, labels) in enumerate(job.pieces()):
            key = json_digest({**identity, **attack, "seed": seed, "images": tensor_digest(images, labels)})
            results[i].append(cache.get(key))
            if results[i][j] is None:
                todo[i, j] = key, (job.attack, images, labels, seed)
    for (i, j), pixels in _made(target, {place: piece for place, (_, piece) in todo.items()}):
        cache.put(todo[i, j][0], pixels)
        results[i][j] = pixels
    return [torch.cat([pixels for pixels in parts if pixels is not None]) for parts in results]


def _identity(attack: Attack) -> dict[str, Any]:
    """What attacked images depend on of an attack, JSON-ready: options, libraries, its package if not askance."""
    identity: dict[str, Any] = {"attack": attack.identity()}
    if attack.libraries:
        identity["libraries"] = {name: version(name) for name in attack.libraries}
    package = ATTACKS.package(attack.kind)
    return identity if package is None else identity | {"package": [package.name, package.version]}


def _made(target: Target, pieces: Mapping[tuple[int, int], _Piece]) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Make the pieces here, or, when there is enough left to do after a while, in a process per core."""
    waiting = dict(pieces)
    if not waiting:
        return
    predict, total, begun = target.build(), len(waiting), time.perf_counter()
    for place, (attack, images, labels, seed) in pieces.items():
        yield place, perturb(predict, attack, images, labels, seed)
        del waiting[place]
        spent = time.perf_counter() - begun
        if target.factory is not None and spent / (total - len(waiting)) * len(waiting) > WORTH_PROCESSES_SECONDS:
            break
    if waiting:
        yield from _in_processes(target, waiting)


def _in_processes(target: Target, pieces: Mapping[tuple[int, int], _Piece]) -> Iterator[tuple[tuple[int, int], Tensor]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    say(f"attacks: {len(pieces)} pieces of {PIECE_IMAGES} images over {cores} processes")
    # spawned, not forked: torch's threads do not survive a fork
    with ProcessPoolExecutor(
        cores, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(target,)
    ) as pool:
        # numpy in between, because tensors would travel through shared memory that may be small
        futures = {
            pool.submit(_run_piece, attack, images.numpy(), labels.numpy(), seed): place
            for place, (attack, images, labels, seed) in pieces.items()
        }
        try:
            for future in track(_Completed(futures), "attacks"):
                yield futures[future], torch.from_numpy(future.result())
        except BrokenProcessPool:
            raise CalibrationError(
                "a process that makes attacked images was ended: memory ran out, or the script that calibrates has no "
                'if __name__ == "__main__": around what it does, which processes then do again; what is made is cached'
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Completed:
    """Futures as they complete, with a length for the progress bar."""

    def __init__(self, futures: Mapping[Any, Any]) -> None:
        self._futures = futures

    def __len__(self) -> int:
        return len(self._futures)

    def __iter__(self) -> Iterator[Any]:
        return as_completed(self._futures)


_predict: PixelClassifier | None = None


def _begin(target: Target) -> None:
    global _predict  # noqa: PLW0603 (a process's one classifier)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _predict = target.build()


def _end_with_parent() -> None:
    """A pool's processes wait for work for ever, also where whoever had it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_piece(attack: Attack, images: Any, labels: Any, seed: int) -> Any:
    assert _predict is not None
    return perturb(_predict, attack, torch.from_numpy(images), torch.from_numpy(labels), seed).numpy()
