"""An answer explained, in words: one sentence a detector, with the share of clean images that go as far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from askance.answers import Answer

Said = Mapping[str, Any]


def in_words(answer: Answer, class_names: Sequence[str]) -> list[str]:
    """The verdict, and what each detector has seen, a line each.

    Args:
        answer: explained; detectors of other packages say how suspicious they are, and no more.
        class_names: in the order of the probabilities.
    """
    prediction, screening = answer.prediction, answer.screening
    if prediction is None or screening is None:
        return [str(answer)]
    lines = [
        f"{prediction.label} ({prediction.probability:.1%}): {answer.verdict}; "
        f"{_share(screening.fused.p_value)} of clean images are as suspicious"
    ]
    for word in screening.detectors:
        say = _SENTENCES.get(word.name)
        seen = "" if say is None or word.explanation is None else f": {say(word.explanation, class_names)}"
        lines.append(f"{word.name.replace('_', ' ')} ({_share(word.p_value)} of clean images are as suspicious){seen}")
    return lines


def _library_network(said: Said, class_names: Sequence[str]) -> str:
    answers = [(layer["layer"], class_names[int(layer["answer"])]) for layer in said["layers"]]
    agreed = len({name for _, name in answers}) == 1
    return f"{', '.join(f'{layer} {name}' for layer, name in answers)}: the layers {'agree' if agreed else 'disagree'}"


def _introspection(said: Said, _: Sequence[str]) -> str:
    return f"an error of {said['estimated_error']:.2g} is expected, where 0 is right and sure, and 1 wrong and sure"


def _self_organizing_map(said: Said, _: Sequence[str]) -> str:
    farthest = min(said["layers"], key=lambda layer: float(layer["clean_share_farther"]))
    row, column = (int(place) for place in farthest["unit"])
    return (
        f"{farthest['layer']} is farthest from the codes that it knows (unit {row}, {column}): "
        f"{_share(float(farthest['clean_share_farther']))} of clean images lie farther"
    )


def _semantic_signature(said: Said, _: Sequence[str]) -> str:
    shares = ", ".join(f"{layer['layer']} {float(layer['one_versus_two']):.0%}" for layer in said["layers"])
    return f"against the other classes, the answer wins of the 1-vs-2 tests {shares}"


def _constellation(said: Said, _: Sequence[str]) -> str:
    shares = {name: _share(float(share)) for name, share in said["clean_share_above"].items()}
    words = [f"{shares['shift']} of clean images' answers shift more"]
    if "grain" in shares:
        words.append(f"{shares['grain']} are coarser in what filters move")
    return f"in altered copies, {' and '.join(words)}"


_SENTENCES: dict[str, Callable[[Said, Sequence[str]], str]] = {
    "library_network": _library_network,
    "introspection": _introspection,
    "self_organizing_map": _self_organizing_map,
    "semantic_signature": _semantic_signature,
    "constellation": _constellation,
}


def _share(value: float) -> str:
    return f"{value:.0%}" if value >= 0.095 else f"{100 * value:.2g}%"
