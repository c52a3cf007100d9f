"""The README's picture, from the digits config: `make figures` writes docs/images/digits.png."""

from __future__ import annotations

import tempfile
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from askance.answers import Answer, Verdict
from askance.calibration.attacks import PGD, PixelClassifier, perturb
from askance.calibration.config import load_config
from askance.calibration.inputs import load_inputs
from askance.calibration.pipeline import calibrate
from askance.calibration.training import train
from askance.classifiers import build_classifier

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "images" / "digits.png"
COLOURS = {Verdict.CLEAN: "#2a7f3f", Verdict.SUSPECT: "#b8860b", Verdict.ADVERSARIAL: "#b22222"}
SHOWN = 6


class Shown:
    """What the figure shows of an answer."""

    def __init__(self, answer: Answer) -> None:
        assert answer.prediction is not None
        assert answer.verdict is not None
        assert answer.score is not None
        self.index, self.verdict, self.score = answer.prediction.index, answer.verdict, answer.score
        self.title = f"{answer.prediction.label} {answer.prediction.probability:.0%}"


def main() -> None:
    """Train, calibrate, attack, and draw."""
    mpl.use("Agg")
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(ROOT / "configs" / "digits.toml")
        weights = Path(folder) / "weights.safetensors"
        config = config.model_copy(update={"classifier": config.classifier.model_copy(update={"weights": weights})})
        train(config)
        bundle = calibrate(config, Path(folder) / "bundle")
        inputs = load_inputs(config)
    screen = bundle.screen(build_classifier)
    images = inputs.splits["evaluate"]
    predict = PixelClassifier(inputs.classifier, config.classifier.preprocessing)
    attacks = {one.name: one for one in config.evaluation.attacks}
    groups = {"clean": images.pixels()} | {
        name: perturb(predict, one, images.pixels(), images.y, one.seed) for name, one in attacks.items()
    }
    answers = {name: [Shown(r) for r in screen(pixels) if isinstance(r, Answer)] for name, pixels in groups.items()}
    right = [a.index == int(y) for a, y in zip(answers["clean"], images.y, strict=True)]

    figure = plt.figure(figsize=(11, 4.2), layout="constrained")
    left, right_half = figure.subfigures(1, 2, width_ratios=(1.15, 1)).ravel()  # type: ignore[union-attr]
    axes = left.subplots()
    thresholds = bundle.manifest.calibration.thresholds["fused"]
    successful = {
        name: [a.score for a, y, ok in zip(given, images.y, right, strict=True) if ok and a.index != int(y)]
        for name, given in answers.items()
        if name != "clean"
    }
    _histogram(axes, [a.score for a in answers["clean"]], successful, thresholds)
    chosen = [
        i for i, (ok, a, y) in enumerate(zip(right, answers["pgd"], images.y, strict=True)) if ok and a.index != y
    ]
    _gallery(right_half.subplots(2, SHOWN), groups, answers, chosen[:SHOWN])
    pgd = attacks["pgd"]
    assert isinstance(pgd, PGD)
    epsilon = pgd.epsilon
    right_half.suptitle(f"one digit per column: clean, and after PGD with a budget of {epsilon:g}", fontsize=10)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUT, dpi=120)


def _histogram(axes: Axes, clean: list[float], attacked: dict[str, list[float]], thresholds: dict[str, float]) -> None:
    everything = [*clean, *(score for scores in attacked.values() for score in scores)]
    bins = torch.linspace(min(everything), max(everything), 36).tolist()
    axes.hist(clean, bins, density=True, alpha=0.75, label=f"clean ({len(clean)})", color=COLOURS[Verdict.CLEAN])
    for (name, scores), style in zip(attacked.items(), ("-", "--"), strict=False):
        label = f"{name.upper()}, successful ({len(scores)})"
        axes.hist(scores, bins, density=True, histtype="step", lw=1.8, ls=style, label=label, color="#b22222")
    for level, value in thresholds.items():
        axes.axvline(value, color="black", lw=1, ls=":")
        axes.text(value, axes.get_ylim()[1] * 0.98, f" {level}", rotation=90, va="top", fontsize=8)
    axes.set(xlabel="fused score (higher = more suspicious)", ylabel="density")
    axes.set_title("scikit-learn digits, images that nothing was fitted on", fontsize=10)
    axes.legend(loc=(0.27, 0.62), fontsize=8)


def _gallery(grid: object, groups: dict[str, Tensor], answers: dict[str, list[Shown]], chosen: list[int]) -> None:
    for row, name in enumerate(("clean", "pgd")):
        for column, i in enumerate(chosen):
            axes: Axes = grid[row, column]  # type: ignore[index]
            answer = answers[name][i]
            axes.imshow(groups[name][i, 0], cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.set_title(answer.title, fontsize=8)
            axes.set_xlabel(answer.verdict, fontsize=7, color=COLOURS[answer.verdict], weight="bold")


if __name__ == "__main__":
    main()
