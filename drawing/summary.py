"""The first screen of a report, in words: what is guarded, what is caught and missed, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from scipy.stats import binom

from askance.answers import FUSED
from askance.colours import in_words
from askance.evaluation import Evaluation
from askance.inside.data import Inside

FEW, TOO_FEW = 1000, 200  # images behind a table
TWISTED = 0.3  # of the codes of a map, whose two best units are no neighbours
RARE = 0.999  # below which what chance does to a class is no news
WEAK = 0.5  # of an attack's images, below which it is said to be missed


class Light(StrEnum):
    """Whether to trust a calibration."""

    GREEN = "green"
    AMBER = "amber"
    RED = "red"


@dataclass(frozen=True)
class Reason:
    """Why not to trust it, or not quite."""

    light: Light
    why: str


def trust(evaluation: Evaluation, inside: Inside | None) -> tuple[Light, tuple[Reason, ...]]:
    """The light, and its reasons, the worst first; none where it is green."""
    reasons = sorted(_reasons(evaluation, inside), key=lambda reason: reason.light is Light.AMBER)
    return (reasons[0].light if reasons else Light.GREEN), tuple(reasons)


def _reasons(evaluation: Evaluation, inside: Inside | None) -> Iterator[Reason]:
    for split in ("calibrate", "fuse"):
        count = evaluation.splits.get(split)
        if count is not None and count < FEW:
            yield Reason(
                Light.RED if count < TOO_FEW else Light.AMBER,
                f"{count} images of {split} are behind its tables: no p-value is below {1 / (count + 1):.2%}, and "
                f"rates are known to a few tenths of themselves; {FEW} are enough for most",
            )
    for level, share in evaluation.clean_flag_rate.items():
        low, high = evaluation.clean_flag_rate_interval.get(level, (0.0, 1.0))
        if share < low:
            yield Reason(
                Light.AMBER,
                f"{share:.1%} of the clean evaluation images are flagged {level}, where {low:.1%} to {high:.1%} would "
                "be by chance: it could catch more than it does",
            )
        if share > high:
            yield Reason(
                Light.RED,
                f"{share:.1%} of the clean evaluation images are flagged {level}, where {low:.1%} to {high:.1%} would "
                "be by chance: they are not like those that it was calibrated on",
            )
    for detector, layers in evaluation.doubts.items():
        for layer, why in layers.items():
            yield Reason(Light.AMBER, f"{in_words(detector)} learns nothing from {layer}: {why}")
    for layer, codes in (inside.codes if inside is not None else {}).items():
        if codes.topographic_error > TWISTED:
            yield Reason(
                Light.AMBER,
                f"the map of {layer} is twisted: for {codes.topographic_error:.0%} of the images the two best units "
                "are no neighbours; more epochs, or a smaller side",
            )
    target = evaluation.target_flag_rate.get("suspect")
    for name, of_class in evaluation.class_clean_flag_rate.items():
        if target is None or of_class.images == 0:
            continue
        most = binom.ppf(RARE, of_class.images, target) / of_class.images
        if of_class.suspect > most:
            yield Reason(
                Light.AMBER,
                f"clean images of {name} are flagged {of_class.suspect / target:.1f} times as often as is promised of "
                f"all ({of_class.suspect:.1%} of {of_class.images})",
            )


def words(title: str, evaluation: Evaluation) -> dict[str, str]:
    """What is guarded, at which rate of false alarms, what is caught, missed, and what it costs."""
    about = evaluation.classifier
    said = {"Guards": f"{title}, which gets {about.accuracy:.1%} of {about.images:,} evaluation images right."}
    rates = [
        f"{share:.1%} are flagged {level}, where {evaluation.target_flag_rate[level]:.1%} is promised"
        for level, share in evaluation.clean_flag_rate.items()
        if level in evaluation.target_flag_rate
    ]
    if rates:
        said["False alarms"] = f"Of clean images {'; '.join(rates)}."
    caught = {name: row[FUSED] for name, row in evaluation.tpr_at_fpr_5.items() if FUSED in row}
    if caught:
        ordered = sorted(caught.values())
        said["Catches"] = (
            f"{ordered[len(ordered) // 2]:.0%} of the images of the median of {len(caught)} attacks, at 5% false "
            f"alarms; {ordered[-1]:.0%} of the one that is caught best."
        )
        worst = min(caught, key=lambda name: caught[name])
        weak = [name for name, share in caught.items() if share < WEAK and name != worst]
        said["Misses"] = f"{1 - caught[worst]:.0%} of {in_words(worst)}" + (
            f", and more than half of {', '.join(map(in_words, weak))}." if weak else ", which is caught worst."
        )
    if FUSED in evaluation.forward_passes:
        passes = evaluation.forward_passes[FUSED]
        said["Costs"] = (
            f"{passes:g} forward pass{'es' if passes > 1 else ''} of the classifier for each image, and the reading."
        )
    said["Beware"] = (
        "The attackers of this report do not know that there are detectors. One who does can do better: its figures "
        "say nothing of that."
    )
    return said
