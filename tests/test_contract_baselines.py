"""The contract of a baseline, over every member of BASELINES."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_baselines import CLEAN, OTHER, SEEN, TUNE

from askance.calibration.baselines import BASELINES, Baseline, Need, Observation


@pytest.fixture(params=list(BASELINES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def odd(inputs: Observation) -> Observation:
    """No class is likelier than another, squeezing makes one certain, and features are far from all others."""
    return replace(
        inputs,
        logits=torch.zeros_like(inputs.logits),
        features={
            layer: torch.full_like(v, 20.0) * torch.tensor([1.0, -1.0]).repeat(10)[: v.shape[1]]
            for layer, v in inputs.features.items()
        },
        squeezed={how: torch.eye(3)[torch.zeros(len(inputs), dtype=torch.long)] for how in inputs.squeezed},
        masked=None if inputs.masked is None else odd(inputs.masked),
    )


def fitted(name: str) -> Baseline:
    baseline = BASELINES[name]()
    assert baseline.fit(CLEAN, TUNE, SEEN) is baseline
    return baseline


def test_a_baseline_says_what_it_is(name: str) -> None:
    assert BASELINES[name].name == name
    assert BASELINES[name].title


def test_scores_are_finite_and_do_not_depend_on_the_batch(name: str) -> None:
    baseline = fitted(name)
    scores = baseline.score(OTHER)
    assert scores.shape == (len(OTHER),)
    assert scores.dtype == torch.float64
    assert torch.isfinite(scores).all()
    row = torch.tensor([3])
    torch.testing.assert_close(baseline.score(OTHER[row]), scores[row])


def test_fitting_is_deterministic(name: str) -> None:
    assert torch.equal(fitted(name).score(OTHER), fitted(name).score(OTHER))


def test_what_is_obviously_odd_scores_higher(name: str) -> None:
    baseline = fitted(name)
    assert baseline.score(odd(OTHER)).median() > baseline.score(OTHER).median()


def test_it_reads_nothing_but_what_it_states_to_need(name: str) -> None:
    needs = BASELINES[name].needs

    def only_needed(full: Observation) -> Observation:
        return Observation(
            full.logits,
            full.labels,
            full.features if Need.FEATURES in needs else {},
            full.squeezed if Need.SQUEEZED in needs else {},
            full.masked if Need.MASKED in needs else None,
        )

    baseline = BASELINES[name]().fit(only_needed(CLEAN), only_needed(TUNE), [only_needed(one) for one in SEEN])
    assert torch.equal(baseline.score(only_needed(OTHER)), fitted(name).score(OTHER))
    if needs:  # and that it does need
        with pytest.raises((IndexError, KeyError, ValueError, RuntimeError)):
            baseline.score(replace(OTHER, features={}, squeezed={}, masked=None))


def test_only_those_that_say_so_learn_from_attacks(name: str) -> None:
    baseline = BASELINES[name]
    if not baseline.learns_from_attacks:
        assert torch.equal(baseline().fit(CLEAN, TUNE, []).score(OTHER), fitted(name).score(OTHER))
