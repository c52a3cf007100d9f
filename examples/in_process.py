"""Screen images in this process: python examples/in_process.py BUNDLE IMAGE..."""

import sys

import askance

bundle, *images = sys.argv[1:]

with askance.open(bundle) as screen:
    for path, answer in zip(images, screen(images), strict=True):
        print(f"{path}: {answer.label}, {answer.verdict}, p = {answer.p_value:.3f}")

    # One image, in whatever form it is at hand (a path, PIL, numpy, torch), explained by every detector.
    answer = screen(images[0], explain=True)
    assert answer.screening is not None
    for word in answer.screening.detectors:
        print(f"  {word.name}: score {word.score:.3f}, p = {word.p_value:.3f}, {word.explanation}")
