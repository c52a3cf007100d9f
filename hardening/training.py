"""Adversarial training: of an example classifier from anew, or of anybody's on from its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from askance.calibration.config import Config, HardeningConfig
from askance.calibration.data import load_splits, named
from askance.calibration.images import Images
from askance.calibration.inputs import (
    CalibrationInputs,
    check_classifier,
    load_inputs,
    new_detectors,
    word_vectors,
)
from askance.calibration.progress import say, track
from askance.calibration.suite import Target
from askance.calibration.training import begun, nothing_to_learn, saved, unseen_images
from askance.calibration.unfinished import unfinished
from askance.detectors import Tap
from askance.errors import CalibrationError, ConfigError
from askance.hardening.losses import loss_of
from askance.hardening.strength import Strength, strength
from askance.writing import reserved

SEEDS = 1_000_003  # that far are those of epochs of one training from those of another's


class Hardened(BaseModel):
    """A hardened classifier.

    Attributes:
        train_images, test_images: how many it learned from, and how many `before` and `after` are of: those held out,
            so that options may be chosen by them, or, where none are, those that calibrate, fuse and evaluate.
        before: what the config's weights stand; None where it began from anew.
        after: what those made here stand.
        weights: where they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_images: int
    test_images: int
    before: Strength | None
    after: Strength
    weights: str


@dataclass
class _Course:
    """A training on its way: the classifier that learns, the average that is kept, and where it is."""

    learner: nn.Module
    average: AveragedModel
    optimizer: torch.optim.SGD
    epoch: int = 0

    @classmethod
    def of(cls, classifier: nn.Module, options: HardeningConfig) -> _Course:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        learner = classifier.to(device).requires_grad_()
        average = AveragedModel(learner, multi_avg_fn=get_ema_multi_avg_fn(options.ema_decay), use_buffers=True)
        optimizer = torch.optim.SGD(
            learner.parameters(),
            lr=options.learning_rate,
            momentum=options.momentum,
            nesterov=options.momentum > 0,
            weight_decay=options.weight_decay,
        )
        return cls(learner, average, optimizer)

    def state(self) -> dict[str, Any]:
        return {
            "learner": self.learner.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
        }

    def go_on(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["epoch"]

    @property
    def device(self) -> torch.device:
        return next(self.learner.parameters()).device


def harden(config: Config, out: Path, *, resume: bool = False) -> Hardened:
    """Train the config's classifier on its `train` split, attacked as it learns, and write the weights.

    What is finished of the training is kept in `<out>.partial` after each epoch until the weights are written.

    Args:
        config: with a section `hardening`.
        out: a .safetensors file that is not there yet.
        resume: go on with what is kept.

    Raises:
        ConfigError: there is no such section, or no split to train on; `out` cannot be so; the classifier is refused.
        CalibrationError: the training diverges; or unfinished work is there that is not to be gone on with, or cannot.
        DataError: the data cannot be used.
        LayerError: a layer named does not exist.
        FileError: something cannot be written.
    """
    options = config.hardening
    if options is None:
        raise ConfigError(
            'the section [hardening] is missing, which says what to stand: add one, such as epsilon = "8/255"'
        )
    if config.splits.train is None:
        raise nothing_to_learn()
    if out.suffix != ".safetensors":
        raise ConfigError(f"askance harden writes safetensors: set --out to a .safetensors path, not {out}")
    if out.exists():
        raise ConfigError(f"{out} exists: choose another path for the hardened weights, or remove it")
    target, splits, layers = _loaded(config, options)
    unseen = splits["held_out"] if "held_out" in splits else unseen_images(splits)
    before = None if options.start == "anew" else strength(target, unseen, options.epsilon, layers)
    classifier = target.build().classifier
    identity = {
        "options": options.model_dump(mode="json"),
        "classifier": target.identity(),
        "images": splits["train"].digest(),
        "seed": config.training.seed,
    }
    with unfinished(out, identity, resume=resume) as work, reserved(out, len(saved(classifier))) as write:
        course = _Course.of(classifier, options)
        if work.state is not None:
            course.go_on(work.state)
        for _ in _train(course, options, splits["train"], target, layers, config.training.seed):
            work.keep(course.state())
        hardened = course.average.module.cpu().eval()
        write(saved(hardened))
    weights: dict[str, Tensor] = dict(hardened.state_dict())
    return Hardened(
        train_images=len(splits["train"]),
        test_images=len(unseen),
        before=before,
        after=strength(replace(target, weights=weights), unseen, options.epsilon, layers),
        weights=str(out),
    )


def _loaded(config: Config, options: HardeningConfig) -> tuple[Target, dict[str, Images], tuple[str, ...]]:
    """The classifier to begin with, the images, and the layers that detectors are to tap, or those named."""
    inputs = load_inputs(config) if options.start == "weights" else _anew(config)
    layers = options.layers
    if layers is None:
        read = {layer for one in new_detectors(inputs).values() for layer in one.layers}
        layers = tuple(name for name, _ in inputs.classifier.named_modules() if name in read)
    Tap(inputs.classifier, layers).close()  # those named may be misspelt
    return inputs.target, dict(inputs.splits), layers


def _anew(config: Config) -> CalibrationInputs:
    """With weights that nothing was learned into yet."""
    with begun(config) as classifier:
        weights = classifier.state_dict()
    splits = load_splits(config.data, config.splits, config.classifier.preprocessing)
    names = named(config.classifier.class_names, splits["fit"].classes)
    inputs = CalibrationInputs.of(config, classifier.eval(), weights, splits, names)
    check_classifier(inputs)
    return replace(inputs, word_vectors=word_vectors(inputs))


def _train(
    course: _Course, options: HardeningConfig, images: Images, target: Target, layers: Sequence[str], seed: int
) -> Iterator[int]:
    """Learn, an epoch at a time; their numbers, from 1.

    Raises:
        CalibrationError: it diverges.
    """
    size = min(options.batch_size, len(images))
    batches = len(images) // size  # a rest of one image has no statistics
    tapped = layers if options.method == "consistent" else ()
    with Tap(course.learner, tapped, target.preprocessing.normalize, training=True) as tap:
        for epoch in range(course.epoch, options.epochs):
            total = 0.0
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed * SEEDS + epoch)  # so that one that goes on draws what it would have drawn
                order = torch.randperm(len(images))[: batches * size].split(size)
                for place, rows in enumerate(track(order, f"epoch {epoch + 1}/{options.epochs}")):
                    done = (epoch * batches + place) / (options.epochs * batches)
                    total += _step(course, tap, images[rows], options, done)
            if not math.isfinite(total):
                raise CalibrationError(
                    f"the training diverges in epoch {epoch + 1}: lower hardening.learning_rate from "
                    f"{options.learning_rate:g}, or raise hardening.warm_up"
                )
            say(f"epoch {epoch + 1}/{options.epochs}: training loss {total / batches:.4f}")
            course.epoch = epoch + 1
            yield course.epoch


def _step(course: _Course, tap: Tap, batch: Images, options: HardeningConfig, done: float) -> float:
    """Learn a batch; its loss.

    Args:
        course: learns.
        tap: of the classifier.
        batch: of images.
        options: how.
        done: the share of the training that is.
    """
    warm = 1.0 if done >= options.warm_up else done / options.warm_up
    left = (1 - done) / (1 - options.warm_up)
    for group in course.optimizer.param_groups:
        group["lr"] = options.learning_rate * (warm if warm < 1 else (1 - math.cos(math.pi * left)) / 2)
    loss = loss_of(tap, batch.pixels().to(course.device), batch.y.to(course.device), options, options.epsilon * warm)
    course.optimizer.zero_grad()
    loss.backward()
    course.optimizer.step()
    course.average.update_parameters(course.learner)
    return float(loss.detach())
