"""Naming: by how many questions those who attack are named, by one client and by ten."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from askance.aware.black_box import by_decision, by_score
from askance.calibration.images import Images
from askance.calibration.progress import track
from benchmarks.probing.attackers import Asking, RefusedError, attacks
from benchmarks.probing.field import Field, guarded


@dataclass(frozen=True)
class Named:
    """What became of an attack.

    Attributes:
        attack, identities: which, and by how many clients at a time.
        victims: how often it was tried.
        named: how often its client was.
        questions: by how many, the median, and the most.
        techniques: what gave it away, and how often.
        done: how often it had what it wanted before.
    """

    attack: str
    identities: int
    victims: int
    named: int
    questions: tuple[int, int] | None
    techniques: dict[str, int]
    done: int


def attacked(bundle: Path, images: Images, epsilon: float, victims: int, most: int, most_alike: int) -> Iterator[Named]:
    """Attack a live server, each by clients, and a victim, of its own."""
    field = Field.of(bundle, images)
    with guarded(bundle, victims * len(attacks(epsilon)) * 11, most_alike) as (serving, accounts):
        for identities in (1, 10):
            for place, (name, (by_scores, attack)) in enumerate(attacks(epsilon).items()):
                questions, techniques, done = [], Counter[str](), 0
                chosen = field.victims[place * victims : (place + 1) * victims]
                for row in track(chosen, f"{name}, {identities} clients"):
                    ours = dict(accounts.take() for _ in range(identities))
                    image, start, label = field.victim(row)
                    wanted = by_score if by_scores else by_decision
                    model = Asking(list(ours.values()), lambda answer, w=wanted, y=label: w(answer, y), most)  # type: ignore[misc]
                    torch.manual_seed(row)
                    try:
                        attack(model, image, start)
                        done += 1
                    except RefusedError:
                        if (how := _named(serving.metrics_port, ours)) is None:
                            continue
                        questions.append(model.asked)
                        techniques[how] += 1
                at = (round(median(questions)), max(questions)) if questions else None
                yield Named(name, identities, victims, len(questions), at, dict(techniques), done)


def _named(metrics_port: int, clients: Collection[str]) -> str | None:
    """The technique by which one of some clients is named."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics") as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("askance_probing_clients_total{") and line.endswith(" 1.0"):
                labels = dict(part.split("=") for part in line[line.index("{") + 1 : line.index("}")].split(","))
                if json.loads(labels["client"]) in clients:
                    return str(json.loads(labels["technique"]))
    return None
