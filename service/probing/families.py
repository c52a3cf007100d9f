"""Families: images that are nearly the same, whoever asks for them, and what their order gives away."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping

import numpy as np
from numpy.typing import NDArray

from askance.service.probing.evidence import Evidence
from askance.service.probing.fingerprints import Bytes, Fingerprints, Hashes
from askance.service.probing.techniques import Halvings, Sign, pairs, square

REMEMBERED = 48  # images of a family that the next one is compared with
CANDIDATES, FEWEST_SHARED = 2, 2  # families that share most hashes with an image, and how many, which are compared
NEAR = 0.95  # a correlation of two images that are nearly the same
COMPARED = 4  # of a family's last images, that the next one is known by
OVERHEAD_BYTES = 4096  # of a family, about, beside its images
MOST_CLIENTS = 64  # of a family, that are told apart
SUSPECTED = 128  # images after a way that was halved, of which it is looked whether answers turn
OVERLAP = 0.5  # of two squares' numbers, those that both change, at most


class Family:
    """Images that are nearly the same, each as one before it.

    Args:
        name: no other's.
        numbers: of an image.

    Attributes:
        name: as given.
        asked: how many there were; the same image once more is none.
        clients: how many of them each client asked for.
        seen_at: when the last came.
        prints: fingerprints that the next one is known by.
        evidence: what their order says.
    """

    def __init__(self, name: int, numbers: int) -> None:
        self.name = name
        self.asked = 0
        self.clients: Counter[str] = Counter()
        self.seen_at = 0.0
        self.prints: deque[Hashes] = deque(maxlen=COMPARED)
        self._images: Bytes = np.empty((0, numbers), np.uint8)
        self._answer: Hashable = None
        self._suspected_until = 0
        self._halvings = Halvings()
        self._square: NDArray[np.bool_] | None = None
        self.evidence = Evidence()

    @property
    def size(self) -> int:
        """Bytes of its images, and about those of the rest."""
        return self._images.nbytes + OVERHEAD_BYTES

    @property
    def last(self) -> Bytes:
        """The images that the next one is known by, uint8 [N, D]."""
        return self._images[-COMPARED:]

    def add(self, numbers: Bytes, answer: Hashable, client: str, *, suspected: bool) -> Mapping[Sign, bool] | None:
        """What an image, after those before it, looks like; None where it is one of them: a client that tries again.

        Args:
            numbers: uint8 [D].
            answer: what its client was told, or would have been.
            client: who asks.
            suspected: whether it has halved a way of late, in this family or in another.
        """
        before = self._images
        differing = np.count_nonzero(before != numbers, axis=1)  # numbers, by image
        if not differing.all():
            return None
        self._images = np.concatenate([before[1 - REMEMBERED :], numbers[None]])
        self.asked += 1
        if client in self.clients or len(self.clients) < MOST_CLIENTS:
            self.clients[client] += 1
        signs: dict[Sign, bool] = {}
        halved = self._halvings.see(self._images, self._answer)
        if self.asked > 1:
            signs = {
                Sign.HALVED: halved,
                Sign.PAIRED: pairs(self._images),
                Sign.ELSEWHERE: self._is_another_square(differing),
            }
            if suspected or self.asked <= self._suspected_until:
                signs[Sign.TURNED] = answer != self._answer
            self.evidence.see(signs)
        if halved:
            self._suspected_until = self.asked + SUSPECTED
        self._answer = answer
        return signs

    def _is_another_square(self, differing: NDArray[np.intp]) -> bool:
        """Whether the last image changes a part, and another one than the last such image did: a clock in a corner is
        no attack.
        """
        found, before = square(self._images, differing), self._square
        if found is None:
            return False
        self._square = found
        return before is not None and int((found & before).sum()) <= OVERLAP * min(int(found.sum()), int(before.sum()))


class Families:
    """The families of late.

    Args:
        clock: seconds, monotonic.
        keep_seconds: after which one that nobody adds to is forgotten.
        most_bytes: of all of them; the oldest are forgotten first.
    """

    def __init__(self, clock: Callable[[], float], keep_seconds: float, most_bytes: int) -> None:
        self._clock, self._keep_seconds, self._most_bytes = clock, keep_seconds, most_bytes
        self._fingerprints: Fingerprints | None = None
        self._families: OrderedDict[int, Family] = OrderedDict()
        self._index: dict[int, int] = {}
        self._bytes, self._next = 0, 1

    def __len__(self) -> int:
        return len(self._families)

    def add(
        self,
        numbers: Bytes,
        answer: Hashable,
        client: str,
        likely: int | None = None,
        *,
        suspected: bool = False,
    ) -> tuple[Family, Mapping[Sign, bool] | None]:
        """The family of an image, a new one if need be, and what it looks like in it, as `Family.add` says.

        Args:
            numbers: of the image, as `thinned` has them, uint8 [D].
            answer: what its client was told, or would have been.
            client: who asks.
            likely: the name of a family that it may well be of: its client's last one.
            suspected: as `Family.add` says.
        """
        self._forget()
        if self._fingerprints is None or self._fingerprints.numbers != len(numbers):  # another bundle's images
            self._fingerprints = Fingerprints(len(numbers))
            for old in list(self._families):
                self._remove(old)
        hashes = self._fingerprints.of(numbers)
        name = self._match(hashes, numbers, likely)
        if name is None:
            name, self._next = self._next, self._next + 1
            self._families[name] = Family(name, len(numbers))
            self._bytes += self._families[name].size
        family = self._families[name]
        self._families.move_to_end(name)
        family.seen_at, before = self._clock(), family.size
        found = family.add(numbers, answer, client, suspected=suspected)
        self._bytes += family.size - before
        if found is not None:
            self._remember(name, family, hashes)
        return family, found

    def _match(self, hashes: Hashes, numbers: Bytes, likely: int | None) -> int | None:
        """The family that has an image nearly the same; the one that shares most hashes, of several."""
        votes = Counter(filter(None, map(self._index.get, hashes.tolist())))
        names = [name for name, count in votes.most_common(CANDIDATES) if count >= FEWEST_SHARED]
        if likely is not None and likely in self._families and likely not in names:
            names.append(likely)
        last = [self._families[name].last for name in names]
        if not last:
            return None
        found = np.flatnonzero(near(numbers, np.concatenate(last)))
        return names[np.searchsorted(np.cumsum([len(one) for one in last]), found[0], "right")] if len(found) else None

    def _remember(self, name: int, family: Family, hashes: Hashes) -> None:
        """Have the next image known by this one's fingerprint, and no longer by that of the fifth last."""
        if len(family.prints) == COMPARED:
            self._drop(name, family.prints.popleft())
            for kept in family.prints:  # which may have some of those hashes, too
                self._index.update(dict.fromkeys(kept.tolist(), name))
        family.prints.append(hashes)
        self._index.update(dict.fromkeys(hashes.tolist(), name))

    def _drop(self, name: int, hashes: Hashes) -> None:
        for one in hashes.tolist():
            if self._index.get(one) == name:
                del self._index[one]

    def _forget(self) -> None:
        oldest_allowed = self._clock() - self._keep_seconds
        while self._families:
            name, family = next(iter(self._families.items()))
            if family.seen_at >= oldest_allowed and self._bytes <= self._most_bytes:
                return
            self._remove(name)

    def _remove(self, name: int) -> None:
        family = self._families.pop(name)
        self._bytes -= family.size
        for hashes in family.prints:
            self._drop(name, hashes)


def near(image: Bytes, others: Bytes) -> NDArray[np.bool_]:
    """Which of others, uint8 [N, D], an image, uint8 [D], correlates with; of one colour, those that are the same."""
    centred = image - np.add.reduce(image, dtype=np.float32) / np.float32(len(image))
    square_length = float(centred @ centred)
    if square_length == 0:
        same: NDArray[np.bool_] = (others == image).all(axis=1)
        return same
    numbers = others.astype(np.float32)
    sums = np.add.reduce(numbers, axis=1)
    square_lengths = np.einsum("nd,nd->n", numbers, numbers) - sums * sums / np.float32(len(image))
    products = numbers @ centred
    close: NDArray[np.bool_] = (products > 0) & (products * products > NEAR**2 * square_length * square_lengths)
    return close
