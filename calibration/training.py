"""A plain, seeded training loop for the example classifiers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from askance.calibration.config import Config, TrainingConfig
from askance.calibration.data import load_splits
from askance.calibration.images import Images
from askance.calibration.progress import say, track
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
    after_epoch: Callable[[int], None] | None = None,
) -> nn.Module:
    """Train in place: SGD with momentum at a constant rate, cross-entropy, batches shuffled by the seed.

    Args:
        classifier: in place.
        preprocessing: in front of it.
        images: to learn.
        config: how.
        after_epoch: called after each with its number, and with 0 before the first.

    Returns:
        The classifier, in eval mode.
    """
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=config.learning_rate, momentum=config.momentum)
    classifier.train()
    if after_epoch is not None:
        after_epoch(0)
    for epoch in range(1, config.epochs + 1):
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
        if after_epoch is not None:
            after_epoch(epoch)
    return classifier.eval()


def train(
    config: Config,
    splits: dict[str, Images] | None = None,
    *,
    overwrite: bool = False,
    checkpoints: Path | None = None,
) -> dict[str, float | int | str]:
    """Train the config's classifier on its `train` split and write the weights to `classifier.weights`.

    Args:
        config: of the calibration.
        splits: already loaded; else they are loaded.
        overwrite: replace weights that are there.
        checkpoints: a folder that keeps the weights of each epoch, from before the first (epoch-000.safetensors) on.

    Returns:
        {"train_images", "test_images" (all that calibrate, fuse and evaluate), "accuracy" on them, "weights"}.

    Raises:
        ConfigError: no split is to be trained on, or the weights are not a .safetensors path, or are there already.
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
    with begun(config) as classifier, reserved(path, len(saved(classifier))) as write:
        keep = None if checkpoints is None else _keeping(classifier, checkpoints)
        fit_classifier(classifier, preprocessing, splits["train"], config.training, keep)
        write(saved(classifier))
    unseen = unseen_images(splits)
    return {
        "train_images": len(splits["train"]),
        "test_images": len(unseen),
        "accuracy": accuracy(classifier, preprocessing, unseen),
        "weights": str(path),
    }


def memorise(config: Config, checkpoints: Path, splits: dict[str, Images] | None = None) -> dict[str, float | int]:
    """Train the config's classifier on its `train` split with the labels permuted, and keep each epoch's weights alone.

    There is nothing to learn but the images by heart: what such a network's layers know is what training does not give
    (Zhang et al., "Understanding deep learning requires rethinking generalization", 2017).

    Args:
        config: of the calibration.
        checkpoints: the folder that keeps them, as `train` does.
        splits: already loaded; else they are loaded.

    Returns:
        {"train_images", "learned" (the share whose permuted label it has learned), "test_images", "accuracy" on these}.

    Raises:
        ConfigError: no split is to be trained on.
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
    with begun(config) as classifier:
        fit_classifier(classifier, preprocessing, permuted, config.training, _keeping(classifier, checkpoints))
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


def _keeping(classifier: nn.Module, folder: Path) -> Callable[[int], None]:
    """Keeps a classifier's weights of each epoch."""

    def keep(epoch: int) -> None:
        write_whole(folder / f"epoch-{epoch:03}.safetensors", saved(classifier))

    return keep


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
