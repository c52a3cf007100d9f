"""Write the tables of docs/results from a bundle: python tools/tables.py mnist|fashion_mnist|cifar10 BUNDLE.

Then run plots.py.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from askance.answers import SCORER_OF
from askance.calibration.markdown import number, table
from askance.detectors import Bundle
from askance.evaluation import Evaluation, SetFigures

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
TITLES = {"mnist": "MNIST, LeNet", "fashion_mnist": "Fashion-MNIST, LeNet", "cifar10": "CIFAR-10, ResNet44"}
OURS = (
    "library_network",
    "introspection",
    "self_organizing_map",
    "semantic_signature",
    "constellation",
    "fused_single_pass",
    "fused_second_look",
    "fused_untrained",
    "fused",
)


def by_attack(evaluation: Evaluation, scorers: Sequence[str]) -> str:
    """AUROC and its interval, a row per attack."""
    rows = []
    for attack, row in evaluation.attacks.items():
        values, bounds = evaluation.auroc.get(attack), evaluation.intervals["auroc"].get(attack, {})
        if values is None:
            cells = ["" for _ in scorers]
        else:
            cells = [
                f"{number(values[r])} <sub>{number(bounds[r][0])} to {number(bounds[r][1])}</sub>" for r in scorers
            ]
        name = f"{attack}{' (seen)' if row.seen else ''}"
        rows.append((f"`{name}`", f"{row.successful}/{row.attempted}", *cells))
    return table(("attack", "successful", *(scorer.replace("_", " ") for scorer in scorers)), rows)


def alarms(evaluation: Evaluation, scorers: Sequence[str]) -> str:
    """Flag rates on clean images and other data."""
    sets = {"clean": evaluation.detector_clean_flag_rate} | {
        name: one.flag_rate for name, one in evaluation.out_of_distribution.items()
    }
    return flagged("images, level", {f"`{name}`": rates for name, rates in sets.items()}, evaluation, scorers)


def benign(evaluation: Evaluation, scorers: Sequence[str]) -> str:
    """Flag rates on controls, of the images that the classifier still gets right."""
    sets = {f"`{name}` {_right(one)}": one.flag_rate for name, one in evaluation.controls.items() if one.flag_rate}
    return flagged("change, level", sets, evaluation, scorers)


def _right(control: SetFigures) -> str:
    return "" if control.counted is None else f"<sub>{control.counted}/{control.images}</sub>"


def flagged(
    head: str,
    sets: Mapping[str, Mapping[str, Mapping[str, float]]],
    evaluation: Evaluation,
    scorers: Sequence[str],
) -> str:
    """Shares flagged, a row for each set and level."""
    rows = (
        (f"{name}, {level}", *(f"{rates[scorer][level]:.1%}" for scorer in scorers))
        for name, rates in sets.items()
        for level in evaluation.target_flag_rate
    )
    return table((head, *(scorer.replace("_", " ") for scorer in scorers)), rows)


def reasons(evaluation: Evaluation) -> str:
    """Shares of clean, benignly changed and successfully attacked images that each reason flags."""
    sets = {"clean": evaluation.detector_clean_flag_rate}
    sets |= {name: one.flag_rate for name, one in evaluation.controls.items()}
    sets |= {name: one.flag_rate for name, one in evaluation.attacks.items()}
    rows = (
        (
            f"`{name}`",
            *(" / ".join(f"{share:.1%}" for share in rates[scorer].values()) for scorer in SCORER_OF.values()),
        )
        for name, rates in sets.items()
        if rates
    )
    return table((f"flagged, {' / '.join(evaluation.target_flag_rate)}", *SCORER_OF), rows)


def elsewhere(evaluation: Evaluation, scorers: Sequence[str]) -> str:
    """AUROC on what is no attack: the classifier's own mistakes against its right answers, other data against clean."""
    sets = {"mistakes": evaluation.mistakes_auroc} | {
        name: one.auroc for name, one in evaluation.out_of_distribution.items()
    }
    rows = ((f"`{name}`", *(number(values[scorer]) for scorer in scorers)) for name, values in sets.items())
    return table(("images", *(scorer.replace("_", " ") for scorer in scorers)), rows)


def classes(evaluation: Evaluation) -> str:
    """Fused flag rates of clean images by predicted class."""
    rows = [
        (name, str(row.images), f"{row.suspect:.1%}", f"{row.adversarial:.1%}")
        for name, row in evaluation.class_clean_flag_rate.items()
    ]
    return table(("predicted class", "images", *evaluation.target_flag_rate), rows)


def section(evaluation: Evaluation) -> str:
    """All of one data set."""
    scorers = list(evaluation.detector_clean_flag_rate)
    ours = [scorer for scorer in OURS if scorer in scorers]
    baselines = evaluation.baselines
    splits = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in evaluation.splits.items())
    intervals = ", ".join(
        f"{level} {target:.0%}: {low:.1%} to {high:.1%}"
        for (level, target), (low, high) in zip(
            evaluation.target_flag_rate.items(), evaluation.clean_flag_rate_interval.values(), strict=True
        )
    )
    accuracy = evaluation.classifier.accuracy
    return "\n\n".join(
        (
            f"Accuracy {accuracy:.2%} on the evaluation images.\nImages: {splits}.",
            "AUROC on successful attacks, ours:",
            by_attack(evaluation, ours),
            "The baselines, on the same images:",
            by_attack(evaluation, ["fused", *baselines]),
            f"Share flagged. 95% beta-binomial intervals for clean images: {intervals}.",
            alarms(evaluation, scorers),
            "Benign changes: share flagged of the images that the classifier still gets right.",
            benign(evaluation, scorers),
            "By reason, on clean images, on the same changes, and on successful attacks:",
            reasons(evaluation),
            "AUROC on what is no attack (the classifier's own mistakes; other data):",
            elsewhere(evaluation, scorers),
            "Clean images flagged by the fused score, by predicted class:",
            classes(evaluation),
        )
    )


def page(name: str, evaluation: Evaluation) -> str:
    """The page of one data set."""
    return f"""# Results: {TITLES[name]}

```
ASKANCE_DATA=... askance calibrate configs/{name}.toml --out B && python tools/tables.py {name} B
```

What the rows and the columns are: [detection](../detection.md).

{section(evaluation)}
"""


def replace_section(page: Path, name: str, content: str) -> None:
    """Put `content` between the two markers of a section of a page."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{page} has no section {name!r}")
    page.write_text(pattern.sub(lambda _: f"{begin}\n\n{content}\n\n{end}", text), encoding="utf-8")


def wrapped(line: str) -> str:
    """A line of a list as docs have it."""
    return textwrap.fill(line, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def main(name: str, bundle: str) -> None:
    """Write the page of one data set."""
    evaluation = Bundle.open(Path(bundle)).evaluation()
    (RESULTS / f"{name}.md").write_text(page(name, evaluation), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:3])
