"""Watch: who probes, by all that clients ask, one image after the other."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from askance.answers import Verdict
from askance.service.probing.evidence import Evidence
from askance.service.probing.families import SUSPECTED, Families
from askance.service.probing.fingerprints import Bytes
from askance.service.probing.techniques import Sign, Technique

SURE = 16.0
"""The log of the wealth that a bet must come to: by honest questions it does once in nine million, or less often."""
FEWEST_ASKED = 3  # images of a family, of a client that is named with others
REMEMBERED_CLIENTS = 10_000  # the least recent are forgotten


@dataclass(frozen=True)
class Suspect:
    """A client that probes.

    Attributes:
        client: its name, or an anonymous one's address.
        technique: what gives it away.
        asked: how many images it has asked for: of a family, where others ask for that, too.
    """

    client: str
    technique: Technique
    asked: int


@dataclass
class _Client:
    """What is known of one: when it last asked, how many images, its last family's name, until which of its images it
    is suspected to bisect, what speaks against it, and when it was named.
    """

    seen_at: float = 0.0
    asked: int = 0
    family: int | None = None
    suspected_until: int = 0
    evidence: Evidence = field(default_factory=Evidence)
    named_at: dict[Technique, float] = field(default_factory=dict)


class Watch:
    """Looks at what is asked.

    Args:
        keep_seconds: after which what nobody asks for, and who does not ask any more, is forgotten.
        most_bytes: of images of late; the oldest are forgotten first.
        most_alike: images of a family that honest clients ask for, all together; 0: any number.
        clock: seconds, monotonic.
    """

    def __init__(
        self, keep_seconds: float, most_bytes: int, most_alike: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock, self._keep_seconds, self._most_alike = clock, keep_seconds, most_alike
        self._families = Families(clock, keep_seconds, most_bytes)
        self._clients: OrderedDict[str, _Client] = OrderedDict()

    def see(self, client: str, numbers: Bytes, label: int, verdict: Verdict) -> list[Suspect]:
        """Look at one image; the clients that it gives away, each once in `keep_seconds` for the same technique.

        Args:
            client: who asks.
            numbers: of the image, as `thinned` has them, uint8 [D].
            label: the class it was taken for.
            verdict: what it was judged.
        """
        self._forget()
        known = self._clients.setdefault(client, _Client())
        self._clients.move_to_end(client)
        known.seen_at = self._clock()
        suspected = known.asked < known.suspected_until
        family, signs = self._families.add(numbers, (label, verdict), client, known.family, suspected=suspected)
        known.family = family.name
        if signs is None:
            return []
        known.asked += 1
        if signs.get(Sign.HALVED):
            known.suspected_until = known.asked + SUSPECTED
        known.evidence.see(signs or {Sign.FLAGGED: verdict is Verdict.ADVERSARIAL})
        found = [Suspect(client, technique, known.asked) for technique in known.evidence.sure(SURE)]
        techniques = family.evidence.sure(SURE)
        if 0 < self._most_alike < family.asked:
            techniques.append(Technique.ALIKE)
        for technique in techniques:
            found += [
                Suspect(one, technique, asked)
                for one, asked in family.clients.items()
                if asked >= FEWEST_ASKED and one in self._clients
            ]
        return [one for one in found if self._is_news(one)]

    def _is_news(self, suspect: Suspect) -> bool:
        """Whether a client is not named for this already; what speaks against it has to be seen anew from then on."""
        known, now = self._clients[suspect.client], self._clock()
        if now - known.named_at.get(suspect.technique, -math.inf) < self._keep_seconds:
            return False
        known.named_at[suspect.technique] = now
        known.evidence = Evidence()
        return True

    def _forget(self) -> None:
        oldest_allowed = self._clock() - self._keep_seconds
        while self._clients:
            client, known = next(iter(self._clients.items()))
            if known.seen_at >= oldest_allowed and len(self._clients) < REMEMBERED_CLIENTS:
                return
            del self._clients[client]
