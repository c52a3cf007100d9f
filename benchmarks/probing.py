"""Probing: by how many questions a live server names who attacks it, and how many honest clients it names.

`python -m benchmarks.probing BUNDLE CONFIG`, or `make bench-probing ARGS="BUNDLE CONFIG"`. Attackers ask a server with
`probing.response = "block"` until they are refused; each has clients, and a victim, of its own. Honest clients send
frames of real images to the same code in this process: most are of a scene that goes on, which is noisy, shaken, dimmed
or compressed, whose light settles, hunts, flickers or pulses, that is drawn on, or that something moves about in.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import eagerpy as ep
import grpc
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import askance
from askance.answers import Answer, Verdict
from askance.aware.black_box import NOTICED, Server, by_decision, by_score
from askance.calibration.attacks import SPSA, Square
from askance.calibration.attacks._foolbox import perturb_of
from askance.calibration.config import load_config
from askance.calibration.data import load_splits
from askance.calibration.images import Images
from askance.calibration.progress import say, track
from askance.errors import AskanceError
from askance.output import console, write_json
from askance.service.client import Client
from askance.service.client_messages import Credentials, ServiceError
from askance.service.launch import launched
from askance.service.probing.fingerprints import thinned
from askance.service.probing.watch import Watch
from askance.writing import temporary_folder

BATCH = 256
LOOKED_AT = 250  # images, among which victims are
UNEVEN, UNEVEN_STEPS = (0.3, 0.7), 12  # of the way left, where who knows divides it, and how often
SIGMA, PAIRS = 0.01, 20  # of NES: of its noise, and how many it asks for in a step
KINDS = (
    "fresh",
    "still",
    "shaken",
    "dimmed",
    "settling",
    "hunting",
    "flickering",
    "pulsing",
    "again",
    "drawn",
    "moving",
    "compressed",
)
NOISY = ("still", "shaken", "dimmed", "settling", "hunting", "moving", "compressed")
DWELLS = (30, 300)  # frames of a scene, on average: of some, and of the others
SHAKEN = 28  # a shaken camera moves by that part of an image's side, to the next pixel
HONEST_CLIENTS = 1000
Bytes = NDArray[np.uint8]


class RefusedError(Exception):
    """The server answers this client no more, or it has asked enough."""


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


@dataclass(frozen=True)
class Honest:
    """What became of honest clients.

    Attributes:
        questions: how many they asked.
        clients: how many there were.
        named: how many were, by kind of frames and technique.
        greatest: what the bets against them came to at most, the natural logarithm, by technique.
    """

    questions: int
    clients: int
    named: dict[str, int]
    greatest: dict[str, float]


class Asking(Server):
    """A live server that clients ask in turn, until it refuses one.

    Args:
        clients: connected to it.
        wanted: at most 0 once an answer is.
        most: questions.
    """

    def __init__(self, clients: Sequence[Client], wanted: Callable[[Answer], float], most: int) -> None:
        super().__init__(clients[0], wanted)
        self._clients, self._most = clients, most

    def _ask(self, image: Tensor) -> float:
        if self.asked == self._most:
            raise RefusedError
        self._client = self._clients[self.asked % len(self._clients)]
        try:
            return super()._ask(image)
        except ServiceError as error:
            if error.code is grpc.StatusCode.PERMISSION_DENIED:
                raise RefusedError from None
            raise


def nes(model: nn.Module, image: Tensor, epsilon: float, *, in_pairs: bool = True, steps: int = 100) -> None:
    """NES, by the sign of the gradient (Ilyas et al. 2018); antithetic, or by noise that a camera sends, too."""
    current = image
    for _ in range(steps):
        noise = torch.randn(PAIRS if in_pairs else 2 * PAIRS, *image.shape[1:])
        asked = torch.stack([noise, -noise], dim=1).flatten(0, 1) if in_pairs else noise
        leads = model(current + SIGMA * asked)[:, 0]
        slope = ((leads - leads.mean())[:, None, None, None] * asked).mean(dim=0, keepdim=True)
        current = (image + (current - epsilon / 10 * slope.sign() - image).clamp(-epsilon, epsilon)).clamp(0, 1)


def unevenly(attack: Any) -> Any:
    """A HopSkipJump that divides ways at uneven places, not in halves."""
    project = attack._project

    def search(is_adversarial: Callable[[Any], Any], originals: Any, perturbed: Any) -> Any:
        low, high = 0.0, 1.0
        for _ in range(UNEVEN_STEPS):
            middle = low + (high - low) * float(torch.empty(()).uniform_(*UNEVEN))
            between = project(originals, perturbed, ep.full(originals, (1,), middle))
            low, high = (low, middle) if is_adversarial(between).item() else (middle, high)
        return project(originals, perturbed, ep.full(originals, (1,), high))

    attack._binary_search = search
    return attack


def attacks(epsilon: float) -> dict[str, tuple[bool, Callable[[nn.Module, Tensor, Tensor], object]]]:
    """By name: whether it goes by scores, and what attacks a model's image, with an image of another class."""
    from foolbox.attacks.boundary_attack import BoundaryAttack
    from foolbox.attacks.hop_skip_jump import HopSkipJumpAttack

    def by_pixels(attack: Square | SPSA) -> Callable[[nn.Module, Tensor, Tensor], object]:
        return lambda model, image, _: attack.perturbation(model, 2)(image, NOTICED)

    def by_decisions(attack: Any) -> Callable[[nn.Module, Tensor, Tensor], object]:
        return lambda model, image, other: perturb_of(model, attack, starting_points=other)(image, NOTICED)

    return {
        "Square": (True, by_pixels(Square(name="square", kind="square", epsilon=epsilon, queries=1000))),
        "NES": (True, lambda model, image, _: nes(model, image, epsilon)),
        "SPSA": (True, by_pixels(SPSA(name="spsa", kind="spsa", epsilon=epsilon))),
        "HopSkipJump": (False, by_decisions(HopSkipJumpAttack(steps=20, initial_gradient_eval_steps=40))),
        "HopSkipJump, 100 at first": (
            False,
            by_decisions(HopSkipJumpAttack(steps=20, initial_gradient_eval_steps=100)),
        ),
        "HopSkipJump, who knows": (
            False,
            by_decisions(unevenly(HopSkipJumpAttack(steps=20, initial_gradient_eval_steps=40))),
        ),
        "NES, who knows": (True, lambda model, image, _: nes(model, image, epsilon, in_pairs=False)),
        "Boundary": (False, by_decisions(BoundaryAttack(steps=1000))),
    }


def attacked(bundle: Path, images: Images, epsilon: float, victims: int, most: int, most_alike: int) -> Iterator[Named]:
    """Attack a live server, by one client and by ten."""
    tokens = [secrets.token_hex(16) for _ in range(victims * len(attacks(epsilon)) * 11)]
    right, clean = _rows(bundle, images)
    with temporary_folder() as folder:
        (folder / "server.toml").write_text(_settings(tokens, most_alike))
        options = ["--config", str(folder / "server.toml"), "--port", "0", "--metrics-port", "0"]
        with launched(["-m", "askance", "serve", str(bundle), *options]) as serving:
            unused = iter(enumerate(tokens))
            for identities in (1, 10):
                for place, (name, (by_scores, attack)) in enumerate(attacks(epsilon).items()):
                    questions, techniques, done = [], Counter[str](), 0
                    chosen = right[place * victims : (place + 1) * victims]
                    for row in track(chosen, f"{name}, {identities} clients"):
                        ours = [next(unused) for _ in range(identities)]
                        clients = [Client(serving.target, credentials=Credentials(token=token)) for _, token in ours]
                        label = int(images.y[row])
                        start = next(one for one, found in clean.items() if found != label)
                        wanted = by_score if by_scores else by_decision
                        model = Asking(clients, lambda answer, w=wanted, y=label: w(answer, y), most)  # type: ignore[misc]
                        torch.manual_seed(row)
                        try:
                            attack(model, images[row : row + 1].pixels(), images[start : start + 1].pixels())
                            done += 1
                        except RefusedError:
                            if (how := _named(serving.metrics_port, {f"c{number}" for number, _ in ours})) is None:
                                continue
                            questions.append(model.asked)
                            techniques[how] += 1
                    at = (round(median(questions)), max(questions)) if questions else None
                    yield Named(name, identities, victims, len(questions), at, dict(techniques), done)


def _settings(tokens: Sequence[str], most_alike: int) -> str:
    clients = [
        f'[[access.clients]]\nname = "c{number}"\nroles = ["predict", "scores"]\n'
        f'token_sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\n'
        for number, token in enumerate(tokens)
    ]
    return "\n".join(
        ['[log]\nlevel = "error"\n', f'[probing]\nresponse = "block"\nmost_alike = {most_alike}\n', *clients]
    )


def _rows(bundle: Path, images: Images) -> tuple[list[int], dict[int, int]]:
    """Which of the first images the classifier gets right: victims; and the classes of those judged CLEAN, by row."""
    some = images[:LOOKED_AT]
    with askance.open(bundle) as screen:
        answers = screen(list(some.x.numpy()))
    found = [answer.prediction.index if answer.prediction else -1 for answer in answers]
    right = [row for row, label in enumerate(some.y.tolist()) if found[row] == label]
    return right, {row: found[row] for row, answer in enumerate(answers) if answer.verdict is Verdict.CLEAN}


def _named(metrics_port: int, clients: set[str]) -> str | None:
    """The technique by which one of some clients is named."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics") as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("askance_probing_clients_total{") and line.endswith(" 1.0"):
                labels = dict(part.split("=") for part in line[line.index("{") + 1 : line.index("}")].split(","))
                if json.loads(labels["client"]) in clients:
                    return str(json.loads(labels["technique"]))
    return None


def frames(images: Bytes, rng: np.random.Generator) -> Iterator[tuple[str, Bytes]]:
    """One scene's frames, each with the kind of the scene, uint8 [C, H, W]."""
    kind = KINDS[rng.integers(len(KINDS))]
    scene = images[rng.integers(len(images))] * rng.uniform(0.8, 1.0)
    count, noise = 1 if kind == "fresh" else int(rng.geometric(1 / rng.choice(DWELLS))), rng.uniform(0, 6)
    rate, strength, side = rng.uniform(0.3, 0.8), rng.uniform(0.1, 0.5), images.shape[2]
    high = 3 * side // 4
    at = rng.integers(0, high, 2)
    for place in range(min(count, 3) if kind == "again" else count):
        frame = scene
        if kind == "shaken":
            far = round(side / SHAKEN)
            frame = np.roll(frame, tuple(rng.integers(-far, far + 1, 2)), (1, 2))
        elif kind == "dimmed":
            frame = frame * (1 - 0.4 * place / count)
        elif kind == "settling":
            frame = frame * (1 - strength * rate**place)
        elif kind == "hunting":
            frame = frame * (1 - strength * (-rate) ** place)
        elif kind == "flickering":
            frame = frame * (1 if place % 2 else 1 - strength / 3)
        elif kind == "pulsing":
            frame = frame * (1 - strength * rng.random())
        elif kind in ("drawn", "moving"):
            at = rng.integers(0, high, 2) if kind == "drawn" else np.clip(at + rng.integers(-1, 2, 2), 0, high)
            frame = frame.copy()
            frame[:, at[0] : at[0] + side // 4, at[1] : at[1] + side // 4] = 255 * strength
            if kind == "drawn":
                scene = frame
        if kind in NOISY:
            frame = frame + rng.normal(0, noise, frame.shape)
        yield kind, _compressed(frame, rng) if kind == "compressed" else _rounded(frame)


def _rounded(frame: NDArray[np.float64]) -> Bytes:
    return np.clip(np.rint(frame), 0, 255).astype(np.uint8)


def _compressed(frame: NDArray[np.float64], rng: np.random.Generator) -> Bytes:
    """As it comes out of a JPEG file of some quality."""
    file, pixels = BytesIO(), _rounded(frame).transpose(1, 2, 0)
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(
        file, "JPEG", quality=int(rng.integers(50, 96))
    )
    found = np.asarray(Image.open(file))
    return found.reshape(pixels.shape).transpose(2, 0, 1)


def honest(bundle: Path, images: Images, questions: int, seed: int = 0) -> Honest:
    """Have honest clients ask, in no order."""
    rng, watch, pixels = np.random.default_rng(seed), Watch(3600, 2**27), images.x.numpy()
    scenes: dict[int, Iterator[tuple[str, Bytes]]] = {}
    named, greatest = Counter[str](), dict[str, float]()

    def asked(client: int) -> tuple[str, Bytes]:
        while True:
            found = next(scenes.get(client, iter(())), None)
            if found is not None:
                return found
            scenes[client] = frames(pixels, rng)

    with askance.open(bundle) as screen:
        for _ in track(range(0, questions, BATCH), f"{questions} honest questions"):
            who = rng.integers(HONEST_CLIENTS, size=BATCH).tolist()
            sent = [asked(client) for client in who]
            answers = screen([frame for _, frame in sent])
            for client, (kind, frame), answer in zip(who, sent, answers, strict=True):
                assert answer.prediction is not None
                assert answer.verdict is not None
                for suspect in watch.see(
                    f"c{client}",
                    thinned(np.divide(frame, 255, dtype=np.float32)),
                    answer.prediction.index,
                    answer.verdict,
                ):
                    named[f"{kind}: {suspect.technique.value}"] += 1
            evidence = [one.evidence for one in watch._clients.values()]
            evidence += [one.evidence for one in watch._families._families.values()]
            for one in evidence:
                for technique, wealth in one.wealth.items():
                    greatest[technique.value] = max(greatest.get(technique.value, 0.0), round(wealth, 1))
    return Honest(questions, HONEST_CLIENTS, dict(named), greatest)


def main(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Of its images.")],
    epsilon: Annotated[float, typer.Option(help="The budget of Square, NES and SPSA.")] = 0.2,
    victims: Annotated[int, typer.Option(min=1, help="Of each attack.")] = 10,
    most: Annotated[int, typer.Option(min=1, help="Questions of an attacker.")] = 500,
    most_alike: Annotated[int, typer.Option(min=0, help="The server's setting.")] = 0,
    honest_questions: Annotated[int, typer.Option(min=0, help="Of honest clients.")] = 100_000,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE")] = None,
) -> None:
    """Attack a live server of BUNDLE, and have honest clients ask."""
    try:
        loaded = load_config(config)
        splits = load_splits(loaded.data, loaded.splits, loaded.classifier.preprocessing)
        found = []
        for one in attacked(bundle, splits["evaluate"], epsilon, victims, most, most_alike):
            found.append(one)
            console.print(str(one), soft_wrap=True, markup=False)
        others = honest(bundle, splits["fuse"], honest_questions) if honest_questions else None
    except AskanceError as error:
        say(f"benchmarks.probing: {error}")
        raise typer.Exit(2) from None
    if others:
        console.print(str(others), soft_wrap=True, markup=False)
    write_json(
        json_file,
        {
            "epsilon": epsilon,
            "most_alike": most_alike,
            "attacks": [asdict(one) for one in found],
            "honest": others and asdict(others),
        },
    )


if __name__ == "__main__":
    typer.run(main)
