"""The field: a live server that blocks whom it names, its clients, and the images that they attack."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

import askance
from askance.answers import Verdict
from askance.calibration.images import Images
from askance.service.client import Client
from askance.service.client_messages import Credentials
from askance.service.launch import Serving, launched
from askance.writing import temporary_folder

LOOKED_AT = 250  # images, among which victims are


@dataclass(frozen=True)
class Field:
    """What attackers meet.

    Attributes:
        images: of which some are victims.
        victims: rows of images that the classifier gets right.
        clean: the classes of images that are judged CLEAN, by row.
    """

    images: Images
    victims: list[int]
    clean: dict[int, int]

    @classmethod
    def of(cls, bundle: Path, images: Images) -> Field:
        """Of the first images of a split."""
        some = images[:LOOKED_AT]
        with askance.open(bundle) as screen:
            answers = screen(list(some.x.numpy()))
        found = [answer.prediction.index if answer.prediction else -1 for answer in answers]
        right = [row for row, label in enumerate(some.y.tolist()) if found[row] == label]
        return cls(images, right, {row: found[row] for row, one in enumerate(answers) if one.verdict is Verdict.CLEAN})

    def victim(self, row: int) -> tuple[Tensor, Tensor, int]:
        """A victim, an image of another class that is let through, each [1, C, H, W], and the victim's class."""
        label = int(self.images.y[row])
        start = next(one for one, found in self.clean.items() if found != label)
        return self.images[row : row + 1].pixels(), self.images[start : start + 1].pixels(), label


class Accounts:
    """Clients that a server knows, taken one after the other."""

    def __init__(self, serving: Serving, tokens: Sequence[str]) -> None:
        self._target, self._unused = serving.target, iter(enumerate(tokens))

    def take(self) -> tuple[str, Client]:
        """The next one's name, and itself."""
        number, token = next(self._unused)
        return f"c{number}", Client(self._target, credentials=Credentials(token=token))


@contextmanager
def guarded(bundle: Path, accounts: int, most_alike: int) -> Iterator[tuple[Serving, Accounts]]:
    """A server of the bundle that blocks who probes, and so many clients that it knows."""
    tokens = [secrets.token_hex(16) for _ in range(accounts)]
    with temporary_folder() as folder:
        (folder / "server.toml").write_text(_settings(tokens, most_alike))
        options = ["--config", str(folder / "server.toml"), "--port", "0", "--metrics-port", "0"]
        with launched(["-m", "askance", "serve", str(bundle), *options]) as serving:
            yield serving, Accounts(serving, tokens)


def _settings(tokens: Sequence[str], most_alike: int) -> str:
    clients = [
        f'[[access.clients]]\nname = "c{number}"\nroles = ["predict", "scores"]\n'
        f'token_sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\n'
        for number, token in enumerate(tokens)
    ]
    return "\n".join(
        ['[log]\nlevel = "error"\n', f'[probing]\nresponse = "block"\nmost_alike = {most_alike}\n', *clients]
    )
