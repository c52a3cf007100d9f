"""A plain, seeded training loop for the example classifiers."""

from __future__ import annotations

from collections.abc import Callable
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
        raise ConfigError("the key 'splits.train' is missing: it says which images the classifier is trained on")
    if path.suffix != ".safetensors":
        raise ConfigError(
            f"askance train writes safetensors: set classifier.weights to a .safetensors path, not {path}"
        )
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists: training would replace these weights; add --overwrite if that is meant")
    splits = load_splits(config.data, config.splits, config.classifier.preprocessing) if splits is None else splits
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        classifier = build_classifier(config.classifier.factory, config.classifier.arguments)
        select_output(classifier, config.classifier.output)
        with reserved(path, len(saved(classifier))) as write:

            def keep(epoch: int) -> None:
                if checkpoints is not None:
                    write_whole(checkpoints / f"epoch-{epoch:03}.safetensors", saved(classifier))

            fit_classifier(classifier, config.classifier.preprocessing, splits["train"], config.training, keep)
            write(saved(classifier))
    parts = [splits[name] for name in ("calibrate", "fuse", "evaluate")]
    unseen = Images(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]), parts[0].classes)
    return {
        "train_images": len(splits["train"]),
        "test_images": len(unseen),
        "accuracy": accuracy(classifier, config.classifier.preprocessing, unseen),
        "weights": str(path),
    }


def saved(classifier: nn.Module) -> bytes:
    """Its state dict as a .safetensors file's content."""
    state: dict[str, Tensor] = {name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}
    return save_safetensors(state)
