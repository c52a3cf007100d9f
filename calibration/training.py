"""A plain, seeded training loop for the example classifiers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from askance.calibration.config import Config, TrainingConfig
from askance.calibration.data import load_splits
from askance.calibration.images import Images
from askance.calibration.progress import say, track
from askance.calibration.unfinished import Unfinished, unfinished
from askance.classifiers import build_classifier
from askance.detectors.output import select_output
from askance.errors import ConfigError
from askance.screening.preprocessing import Preprocessing
from askance.writing import reserved, write_whole


def accuracy(classifier: nn.Module, preprocessing: Preprocessing, images: Images, batch_size: int = 500) -> float:
    """Share of `images` classified right, in [0, 1]."""
    correct = 0
    with torch.no_grad():
        for batch in images.batches(batch_size):
            predicted = classifier(preprocessing.normalize(batch.pixels())).argmax(dim=1)
            correct += int((predicted == batch.y).sum())
    return correct / len(images)


def fit_classifier(
    classifier: nn.Module,
    preprocessing: Preprocessing,
    images: Images,
    config: TrainingConfig,
    work: Unfinished | None = None,
    checkpoints: Path | None = None,
) -> nn.Module:
    """Train in place: SGD with momentum at a constant rate, cross-entropy, batches shuffled by the seed.

    Args:
        classifier: in place.
        preprocessing: in front of it.
        images: to learn.
        config: how.
        work: keeps what is finished, and has what to go on with.
        checkpoints: a folder that keeps the weights of each epoch, from before the first (epoch-000.safetensors) on.

    Returns:
        The classifier, in eval mode.
    """
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=config.learning_rate, momentum=config.momentum)
    done = 0
    if work is not None and (state := work.state) is not None:
        classifier.load_state_dict(state["classifier"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["shuffling"])
        torch.set_rng_state(state["dropout"])
        done = state["epoch"]
    elif checkpoints is not None:
        _check_in(classifier, checkpoints, 0)
    classifier.train()
    for epoch in range(done + 1, config.epochs + 1):
        order = torch.randperm(len(images), generator=generator)
        total = torch.zeros(())
        for rows in track(order.split(config.batch_size), f"epoch {epoch}/{config.epochs}"):
            batch = images[rows]
            optimizer.zero_grad()
            loss = F.cross_entropy(classifier(preprocessing.normalize(batch.pixels())), batch.y)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch)
        say(f"epoch {epoch}/{config.epochs}: training loss {float(total) / len(images):.4f}")
        if checkpoints is not None:
            _check_in(classifier, checkpoints, epoch)
        if work is not None:
            work.keep(
                {
                    "classifier": classifier.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "shuffling": generator.get_state(),
                    "dropout": torch.get_rng_state(),
                    "epoch": epoch,
                }
            )
    return classifier.eval()


def train(
    config: Config,
    splits: dict[str, Images] | None = None,
    *,
    overwrite: bool = False,
    checkpoints: Path | None = None,
    resume: bool = False,
) -> dict[str, float | int | str]:
    """Train the config's classifier on its `train` split and write the weights to `classifier.weights`.

    What is finished is kept in `<weights>.partial` after each epoch until they are written.

    Args:
        config: of the calibration.
        splits: already loaded; else they are loaded.
        overwrite: replace weights that are there.
        checkpoints: as for `fit_classifier`.
        resume: go on with what is kept.

    Returns:
        {"train_images", "test_images" (all that calibrate, fuse and evaluate), "accuracy" on them, "weights"}.

    Raises:
        ConfigError: no split is to be trained on, or the weights are not a .safetensors path, or are there already.
        CalibrationError: unfinished work is there that is not to be gone on with, or cannot.
        DataError: the data cannot be used.
        FileError: the weights cannot be written; found out before any training, where it can be.
    """
    path = config.classifier.weights
    if config.splits.train is None:
        raise nothing_to_learn()
    if path.suffix != ".safetensors":
        raise ConfigError(
            f"askance train writes safetensors: set classifier.weights to a .safetensors path, not {path}"
        )
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists: training would replace these weights; add --overwrite if that is meant")
    preprocessing = config.classifier.preprocessing
    splits = load_splits(config.data, config.splits, preprocessing) if splits is None else splits
    images = splits["train"]
    with (
        begun(config) as classifier,
        reserved(path, len(saved(classifier))) as write,
        unfinished(path, _identity(config, images), resume=resume) as work,
    ):
        fit_classifier(classifier, preprocessing, images, config.training, work, checkpoints)
        write(saved(classifier))
    unseen = unseen_images(splits)
    return {
        "train_images": len(splits["train"]),
        "test_images": len(unseen),
        "accuracy": accuracy(classifier, preprocessing, unseen),
        "weights": str(path),
    }


def memorise(
    config: Config, checkpoints: Path, splits: dict[str, Images] | None = None, *, resume: bool = False
) -> dict[str, float | int]:
    """Train the config's classifier on its `train` split with the labels permuted, and keep each epoch's weights alone.

    There is nothing to learn but the images by heart: what such a network's layers know is what training does not give
    (Zhang et al., "Understanding deep learning requires rethinking generalization", 2017).

    Args:
        config: of the calibration.
        checkpoints: the folder that keeps them, as `train` does; what is finished is kept in `<checkpoints>.partial`.
        splits: already loaded; else they are loaded.
        resume: go on with what is kept.

    Returns:
        {"train_images", "learned" (the share whose permuted label it has learned), "test_images", "accuracy" on these}.

    Raises:
        ConfigError: no split is to be trained on.
        CalibrationError: unfinished work is there that is not to be gone on with, or cannot.
        DataError: the data cannot be used.
        FileError: the weights cannot be written.
    """
    if config.splits.train is None:
        raise nothing_to_learn()
    preprocessing = config.classifier.preprocessing
    splits = load_splits(config.data, config.splits, preprocessing) if splits is None else splits
    images = splits["train"]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(config.training.seed))
    permuted = Images(images.x, images.y[order], images.classes)
    identity = _identity(config, permuted)
    with begun(config) as classifier, unfinished(checkpoints, identity, resume=resume) as work:
        fit_classifier(classifier, preprocessing, permuted, config.training, work, checkpoints)
    unseen = unseen_images(splits)
    return {
        "train_images": len(permuted),
        "learned": accuracy(classifier, preprocessing, permuted),
        "test_images": len(unseen),
        "accuracy": accuracy(classifier, preprocessing, unseen),
    }


@contextmanager
def begun(config: Config) -> Iterator[nn.Module]:
    """The config's classifier before any training, which is seeded as long as this lasts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        yield select_output(
            build_classifier(config.classifier.factory, config.classifier.arguments), config.classifier.output
        )


def _check_in(classifier: nn.Module, folder: Path, epoch: int) -> None:
    """Keep a classifier's weights of an epoch."""
    write_whole(folder / f"epoch-{epoch:03}.safetensors", saved(classifier))


def _identity(config: Config, images: Images) -> dict[str, Any]:
    """What a training depends on."""
    return {
        "classifier": config.classifier.model_dump(mode="json", exclude={"weights"}),
        "training": config.training.model_dump(mode="json"),
        "images": images.digest(),
    }


def unseen_images(splits: dict[str, Images]) -> Images:
    """All images that neither training nor detectors see."""
    parts = [splits[name] for name in ("calibrate", "fuse", "evaluate")]
    return Images(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]), parts[0].classes)


def nothing_to_learn() -> ConfigError:
    """Where a config has no split to train on."""
    return ConfigError("the key 'splits.train' is missing: it says which images the classifier is trained on")


def saved(classifier: nn.Module) -> bytes:
    """Its state dict as a .safetensors file's content."""
    state: dict[str, Tensor] = {name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}
    return save_safetensors(state)
