"""Ask a server, first one image, then several at once: python examples/client.py HOST:PORT IMAGE..."""

import asyncio
import sys

import askance

target, *images = sys.argv[1:]


def told(outcome: askance.Answer | BaseException) -> str:
    """One bad image fails alone: its outcome is an error, the others' are answers."""
    return str(outcome) if isinstance(outcome, BaseException) else f"{outcome.label}, {outcome.verdict}"


with askance.Client(target) as client:
    answer = client.screen(images[0])
    print(f"{images[0]}: {told(answer)}")
    if answer.p_value is None:  # what is not disclosed to us is None, never zero
        print(f"  no scores: {answer.reason}")
    else:
        print(f"  p = {answer.p_value:.3f}")

    for path, outcome in zip(images, client.screen_many(images), strict=True):  # over one stream
        print(f"{path}: {told(outcome)}")


async def concurrently() -> None:
    """The same under asyncio."""
    async with askance.AsyncClient(target) as client:
        outcomes = await asyncio.gather(*(client.screen(image) for image in images), return_exceptions=True)
        print("asyncio:", "; ".join(map(told, outcomes)))


asyncio.run(concurrently())
