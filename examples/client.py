"""Ask a server, first one image, then several over one stream: python examples/client.py HOST:PORT IMAGE..."""

import asyncio
import sys

import askance

target, *images = sys.argv[1:]

with askance.Client(target) as client:
    answer = client.screen(images[0])
    print(f"{images[0]}: {answer.label}, {answer.verdict}")
    if answer.p_value is None:  # what is not disclosed to us is None, never zero
        print(f"  no scores: {answer.reason}")
    else:
        print(f"  p = {answer.p_value:.3f}")

    for path, outcome in zip(images, client.screen_many(images), strict=True):
        if isinstance(outcome, askance.ServiceError):  # one bad image fails alone
            print(f"{path}: {outcome}")
        else:
            print(f"{path}: {outcome.label}, {outcome.verdict}")


async def concurrently() -> None:
    """The same under asyncio."""
    async with askance.AsyncClient(target) as client:
        answers = await asyncio.gather(*(client.screen(image) for image in images))
        print("asyncio:", ", ".join(str(answer.label) for answer in answers))


asyncio.run(concurrently())
