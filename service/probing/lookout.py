"""Lookout: a process of its own that looks for who probes, so that no answer waits for Python's one thread at a time.

`python -m askance.service.probing.lookout KEEP_SECONDS MOST_BYTES MOST_ALIKE`: for each image a line of JSON on stdin,
an `Asked`, with the image's numbers behind it; for each client that is found a line on stdout, a `Suspect`. It ends
with its stdin.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from typing import BinaryIO

import numpy as np

from askance.answers import Verdict
from askance.service.probing.fingerprints import Bytes
from askance.service.probing.techniques import Technique
from askance.service.probing.watch import Suspect, Watch

NICE = 10  # answers come first


@dataclass(frozen=True)
class Asked:
    """An image that was answered.

    Attributes:
        client: who asked.
        label: the class it was taken for.
        verdict: what it was judged.
        numbers: how many there are of it.
    """

    client: str
    label: int
    verdict: Verdict
    numbers: int


def message(asked: Asked, numbers: Bytes) -> bytes:
    """What the process reads of an image."""
    return json.dumps(asdict(asked)).encode() + b"\n" + numbers.tobytes()


def main(arguments: list[str], asked: BinaryIO, found: BinaryIO) -> None:
    """Look at what is asked until there is no more."""
    keep_seconds, most_bytes, most_alike = arguments
    watch = Watch(float(keep_seconds), int(most_bytes), int(most_alike))
    for line in asked:
        one = _asked_of(line)
        numbers = np.frombuffer(asked.read(one.numbers), np.uint8)
        for suspect in watch.see(one.client, numbers, one.label, one.verdict):
            found.write(json.dumps(asdict(suspect)).encode() + b"\n")
            found.flush()


def _asked_of(line: bytes) -> Asked:
    said = json.loads(line)
    return Asked(said["client"], said["label"], Verdict(said["verdict"]), said["numbers"])


def suspect_of(line: bytes) -> Suspect:
    """What a line that the process wrote says."""
    said = json.loads(line)
    return Suspect(said["client"], Technique(said["technique"]), said["asked"])


if __name__ == "__main__":
    for ending in (signal.SIGINT, signal.SIGTERM):  # which go to the server, too: it closes stdin once it is done
        signal.signal(ending, signal.SIG_IGN)
    os.nice(NICE)
    main(sys.argv[1:], sys.stdin.buffer, sys.stdout.buffer)
