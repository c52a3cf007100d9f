"""Attackers who know the detectors: the defences' slopes, the attacks, the figures and the gates they go through."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_support import edit
from calibration_support import DigitsRun
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from toy import Trained

from askance.__main__ import run as command
from askance.answers import Answer, DetectorVerdict, Prediction, Screening, Verdict
from askance.aware import evaluate_aware
from askance.aware.attacks import CALM, AwareAttack, Way, run
from askance.aware.black_box import by_decision, by_score
from askance.aware.crafting import Crafted, Crafter, craft
from askance.aware.defences import BaselineDefence, Defence, FusedDefence, Look, in_bytes
from askance.aware.effort import TWICE, Effort
from askance.aware.facing import Faced, Judged
from askance.calibration.baselines import BASELINES
from askance.calibration.config import load_config
from askance.calibration.rates import Rate
from askance.detectors import Bundle
from askance.detectors.tensors import rounded
from askance.errors import AskanceError, ConfigError

WITH_SLOPES = [name for name, baseline in BASELINES.items() if BaselineDefence.suits(baseline)]
EPSILON = 0.2


@pytest.fixture(scope="module")
def defence(trained: Trained) -> FusedDefence:
    assert trained.calibration is not None
    own = copy.deepcopy(trained.classifier).requires_grad_(False)  # others' stays as it is
    return FusedDefence(own, trained.detectors, trained.preprocessing, trained.calibration)


@pytest.fixture(scope="module")
def victims(trained: Trained) -> tuple[Tensor, Tensor]:
    images, labels = trained.part("evaluate")
    with torch.no_grad():
        right = trained.classifier(trained.preprocessing.normalize(images)).argmax(dim=1) == labels
    return in_bytes(images[right][:20]), labels[right][:20]


@pytest.fixture(scope="module")
def guides(trained: Trained, victims: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = trained.part("calibrate")
    return torch.stack([images[labels != label][0] for label in victims[1]])


def p_values(trained: Trained, pixels: Tensor) -> list[float]:
    answers = trained.screen()(pixels.numpy())
    return [answer.p_value for answer in answers if isinstance(answer, Answer) and answer.p_value is not None]


class TestDefences:
    def test_it_says_what_the_screen_says(
        self, trained: Trained, defence: FusedDefence, victims: tuple[Tensor, Tensor]
    ) -> None:
        """Of clean, attacked, noisy, black, white and extreme images, the constellation's views among what is read."""
        images, labels = victims
        attacked = trained.attack(images, labels, 0.2, 10)
        noisy = (images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
        flat = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8), (torch.rand(1, 8, 8) > 0.5).float()])
        pixels = in_bytes(torch.cat([images, attacked, noisy, flat]))
        assert any(detector.view_layers for detector in trained.detectors.values())
        look = defence(pixels.requires_grad_())
        assert look.p_values.tolist() == pytest.approx(p_values(trained, pixels.detach()), abs=1 / 301)

    def test_every_detector_shows_its_slopes(
        self, trained: Trained, defence: FusedDefence, victims: tuple[Tensor, Tensor]
    ) -> None:
        """Each component of each kind: one without a gradient would be a hole that no attack goes through."""
        pixels = (victims[0] + 0.05).clamp(0, 1).requires_grad_()
        capture = defence._tap(in_bytes(pixels))
        for name, detector in trained.detectors.items():
            for part, values in detector.read(capture).components.items():
                (slope,) = torch.autograd.grad(values.double().sum(), pixels, retain_graph=True)
                assert bool((slope.nan_to_num() != 0).any()), f"{name}/{part}"

    def test_downhill_is_less_suspicious(self, defence: FusedDefence, victims: tuple[Tensor, Tensor]) -> None:
        pixels = (victims[0] + 0.1 * torch.randn(victims[0].shape, generator=torch.Generator().manual_seed(1))).clamp(
            0, 1
        )
        moved = pixels.requires_grad_()
        look = defence(moved)
        (slope,) = torch.autograd.grad(look.suspicion.sum(), moved)
        after = defence((moved - 0.02 * slope.sign()).clamp(0, 1).detach())
        assert float((after.suspicion < look.suspicion).double().mean()) >= 0.8

    @pytest.mark.parametrize("name", WITH_SLOPES)
    def test_baselines_say_what_an_evaluation_says_and_show_slopes(
        self, trained: Trained, victims: tuple[Tensor, Tensor], name: str
    ) -> None:
        nothing = np.zeros(1)
        facing = BaselineDefence(BASELINES[name](), trained.classifier, trained.preprocessing, nothing)
        pixels = (victims[0] + 0.05).clamp(0, 1).requires_grad_()
        look = facing(pixels)
        (slope,) = torch.autograd.grad(look.suspicion.sum(), pixels)
        assert bool((slope != 0).any(dim=(1, 2, 3)).all())
        if name == "max_softmax":
            with torch.no_grad():
                softmax = trained.classifier(trained.preprocessing.normalize(in_bytes(pixels))).double().softmax(dim=1)
            torch.testing.assert_close(look.suspicion.detach(), 1 - softmax.amax(dim=1), atol=1e-12, rtol=0)

    def test_which_baselines_have_slopes(self) -> None:
        assert set(WITH_SLOPES) == {"max_softmax", "energy", "feature_squeezing"}

    def test_rounding_lets_gradients_through(self) -> None:
        values = torch.tensor([0.12, 0.77], requires_grad=True)
        found = rounded(values, 1)
        assert found.tolist() == torch.tensor([0.1, 0.8]).tolist()
        (slope,) = torch.autograd.grad((found * torch.tensor([2.0, 3.0])).sum(), values)
        assert slope.tolist() == [2, 3]
        assert not rounded(values.detach()).requires_grad


class TestAttacks:
    @pytest.mark.parametrize("way", Way)
    @pytest.mark.parametrize("signs", [False, True])
    def test_what_is_made_keeps_its_promises(
        self,
        trained: Trained,
        defence: FusedDefence,
        victims: tuple[Tensor, Tensor],
        guides: Tensor,
        way: Way,
        signs: bool,
    ) -> None:
        """Within the budget, of 8 bits, wrong, and judged as it says."""
        images, labels = victims
        found = run(defence, AwareAttack(way=way, epsilon=EPSILON, steps=10, signs=signs), images, labels, guides)
        assert float((found.pixels - images).abs().max()) <= EPSILON + 0.5 / 255 + 1e-6
        torch.testing.assert_close(found.pixels * 255, (found.pixels * 255).round(), atol=1e-4, rtol=0)
        fooled = found.p_values > 0
        with torch.no_grad():
            wrong = trained.classifier(trained.preprocessing.normalize(found.pixels)).argmax(dim=1) != labels
        assert wrong.tolist() == fooled.tolist()
        assert ((found.fooled_at >= 0) == fooled).all()
        judged = np.array(p_values(trained, found.pixels))
        assert found.p_values[fooled].tolist() == pytest.approx(judged[fooled].tolist(), abs=1 / 301)
        assert (found.evaded_at[found.p_values > 0.05] >= found.fooled_at[found.p_values > 0.05]).all()

    def test_who_knows_gets_further(
        self, trained: Trained, defence: FusedDefence, victims: tuple[Tensor, Tensor]
    ) -> None:
        images, labels = victims
        oblivious = in_bytes(trained.attack(images, labels, EPSILON, 20))
        known = run(defence, AwareAttack(way=Way.SELECTIVE, epsilon=EPSILON, steps=40), images, labels)
        unnoticed = float(np.mean([p > 0.05 for p in p_values(trained, oblivious)]))
        assert float((known.p_values > 0.05).mean()) >= max(0.5, unnoticed + 0.2)

    def test_an_image_that_passes_is_left_alone(self, victims: tuple[Tensor, Tensor]) -> None:
        images, labels = victims
        asked: list[int] = []

        class Calm(Defence):
            def __call__(self, pixels: Tensor) -> Look:
                asked.append(len(pixels))
                logits = torch.zeros(len(pixels), 10).scatter(1, (labels[:1] + 1).expand(len(pixels), 1), 9.0)
                logits = logits + 0 * pixels.sum()
                return Look(logits, logits.sum(dim=1).double(), np.full(len(pixels), 0.9), (logits,))

        alike = labels == labels[0]
        found = run(Calm(), AwareAttack(way=Way.WEIGHTED, epsilon=0.1, steps=9), images[alike], labels[alike])
        assert asked == [int(alike.sum())]
        assert (found.p_values == 0.9).all()
        assert (found.fooled_at == 0).all()

    def test_one_attack_after_the_other(
        self, victims: tuple[Tensor, Tensor], defence: FusedDefence, guides: Tensor
    ) -> None:
        images, labels = victims
        attacks = {
            str(steps): AwareAttack(way=Way.SELECTIVE, epsilon=EPSILON, steps=steps, random_start=True, seed=steps)
            for steps in (3, 6)
        }
        made = craft(defence, attacks, images, labels, guides)
        first = run(defence, attacks["3"], images, labels)
        assert (made.p_values >= first.p_values).all()
        spared = first.p_values > CALM
        assert torch.equal(made.pixels[spared], first.pixels[spared])
        late = (first.fooled_at < 0) & (made.fooled_at >= 0)
        assert (made.fooled_at[late] >= 3).all()
        assert set(made.attack.tolist()) <= {-1, 0, 1}

    @given(st.integers(1, 5), st.integers(0, 2**31))
    def test_what_is_packed_is_unpacked(self, count: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        pixels = torch.from_numpy(random.integers(0, 256, (count, 1, 2, 3)) / 255).float()
        counts = [random.integers(-1, 2**20, count) for _ in range(3)]
        made = Crafted(pixels, random.random(count), *counts)
        again = Crafted.unpacked(made.packed(), (1, 2, 3))
        assert torch.equal(again.pixels, pixels)
        assert again.p_values.tolist() == made.p_values.tolist()
        for one, other in zip((again.attack, again.fooled_at, again.evaded_at), counts, strict=True):
            assert one.tolist() == other.tolist()


def judged(*unnoticed: bool) -> Judged:
    """Images that all fool the classifier."""
    return Judged(np.ones(len(unnoticed), dtype=np.bool_), np.where(unnoticed, 0.3, 0.02))


def faced(direct: Judged, transferred: Judged | None = None, evaded_at: list[int] | None = None) -> Faced:
    count = len(direct.fooled)
    steps = np.array([4] * count if evaded_at is None else evaded_at)
    made = Crafted(torch.zeros(count, 1, 2, 2), direct.p_values, steps * 0, steps * 0 + 2, steps)
    nobody = judged(*[False] * count)
    distances = np.full(count, 3.0), np.full(count, 2.0)
    return Faced(made, direct, transferred or nobody, nobody, distances, np.ones(count, dtype=np.bool_))


class TestFigures:
    @pytest.mark.parametrize(
        ("which", "low", "high"), [([0] * 10, 0, 0.2775), ([1] * 5 + [0] * 5, 0.2366, 0.7634), ([1] * 10, 0.7225, 1)]
    )
    def test_wilsons_interval(self, which: list[int], low: float, high: float) -> None:
        rate = Rate.of(np.array(which, dtype=np.bool_))
        assert rate.share == np.mean(which)
        assert (rate.low, rate.high) == pytest.approx((low, high), abs=1e-4)

    def test_the_best_of_each_victim_counts(self) -> None:
        one = Judged(np.array([True, False, True]), np.array([0.2, 0.9, 0.02]))
        other = Judged(np.array([True, True, False]), np.array([0.1, 0.03, 0.8]))
        best = Judged.best([one, other], 3)
        assert best.fooled.all()
        assert best.p_values.tolist() == [0.2, 0.03, 0.02]
        assert {level: rate.share for level, rate in best.rates().items()} == {"0.01": 1, "0.05": 1 / 3, "0.5": 0}

    def test_a_row(self) -> None:
        row = faced(judged(True, True, True, False)).row("fused", 0.1, Effort.QUICK, 0.5, np.array([True]))
        assert row.converged
        assert row.aware is not None
        assert row.aware["0.05"].share == 0.75
        assert row.oblivious["0.05"].share == 0
        assert row.cost is not None
        assert (row.cost.steps, row.cost.distance) == (2, 1.5)

    @pytest.mark.parametrize(
        ("gate", "made", "before", "at_half"),
        [
            ("direct", faced(judged(*[False] * 4), judged(True, *[False] * 3)), None, [True]),
            ("steps", faced(judged(*[True] * 4), evaded_at=[4, 4, 4, Effort.QUICK.all_steps + 1]), None, [True]),
            ("half", faced(judged(*[True] * 4)), None, [True, False]),
            ("budget", faced(judged(True, True, False, False)), 0.75, [True]),
        ],
    )
    def test_a_gate_that_closes_keeps_the_figures_back(
        self, gate: str, made: Faced, before: float | None, at_half: list[bool]
    ) -> None:
        row = made.row("fused", 0.1, Effort.QUICK, before, np.array(at_half))
        assert [name for name, one in row.gates.items() if not one.holds] == [gate]
        assert not row.converged
        assert row.aware is None
        assert row.cost is None

    def test_masked_gradients_are_found_out(self, defence: FusedDefence, victims: tuple[Tensor, Tensor]) -> None:
        """A defence that shows no slopes looks strong to whoever follows them, until others' images are held to it."""
        images, labels = victims

        class Masked(Defence):
            def __call__(self, pixels: Tensor) -> Look:
                return defence(pixels)._replace(suspicion=torch.zeros(len(pixels), dtype=torch.float64))

        attack = AwareAttack(way=Way.SELECTIVE, epsilon=EPSILON, steps=30)
        against, others = (run(one, attack, images, labels) for one in (Masked(), defence))
        direct, transferred = (Judged(one.p_values > 0, one.p_values) for one in (against, others))
        row = faced(direct, transferred).row("masked", EPSILON, Effort.QUICK, None, np.array([True]))
        assert not row.gates["direct"].holds
        assert row.aware is None

    def test_efforts_grow(self) -> None:
        tried = [list(effort.attacks(0.1)) for effort in Effort]
        assert [len(names) for names in tried] == [3, 6, 9]
        assert all(names[-1] == TWICE for names in tried)
        assert all(effort.attacks(0.1)[TWICE].steps == 2 * effort.steps for effort in Effort)
        assert [effort.victims for effort in Effort] == [100, 500, 1000]


def answer(predicted: int, p: float | None, score: float = 0.0, verdict: Verdict = Verdict.CLEAN) -> Answer:
    shares = tuple(0.8 if k == predicted else 0.1 for k in range(3))
    fused = None if p is None else Screening(DetectorVerdict("fused", score, p, ()), ())
    return Answer(Prediction(predicted, str(predicted), shares), verdict, fused)


@pytest.mark.acceptance
@pytest.mark.lasting
class TestServed:
    def test_what_an_attacker_by_scores_wants(self) -> None:
        """First a wrong class, by the margin; then a low score; then nothing more."""
        right, suspicious, less, through = (
            by_score(one, 0) for one in (answer(0, 0.9), answer(1, 0.01, 3.0), answer(1, 0.01, 1.0), answer(1, 0.06))
        )
        assert right == pytest.approx(1 + math.log(8))
        assert right > 1 > suspicious > less > 0 > through
        with pytest.raises(AskanceError, match="needs the role scores"):
            by_score(answer(1, None), 0)

    @pytest.mark.parametrize(
        ("given", "with_verdict", "without"),
        [
            (answer(0, None), 1, 1),
            (answer(1, None), -1, -1),
            (answer(1, None, verdict=Verdict.SUSPECT), 1, -1),
            (answer(1, None, verdict=Verdict.BLOCKED), 1, -1),
        ],
    )
    def test_what_an_attacker_by_decisions_wants(self, given: Answer, with_verdict: int, without: int) -> None:
        assert by_decision(given, 0) == with_verdict
        assert by_decision(given, 0, with_verdict=False) == without

    def test_a_live_server_and_a_stolen_bundle(self, digits_run: DigitsRun, capsys: pytest.CaptureFixture[str]) -> None:
        """By few answers, on few victims: Square gets somewhere, HopSkipJump arrives, the gate is open.

        The bundle that was stolen is this very one.
        """
        bundle, config = digits_run.bundle, load_config(digits_run.config_path)
        found = evaluate_aware(bundle, config, Effort.QUICK, [0.3], victims=8, other=bundle, served=True)
        (fused, *_) = found.rows
        assert fused.aware is not None
        assert fused.stolen is not None
        assert fused.oblivious["0.05"].share < fused.stolen["0.05"].share <= fused.aware["0.05"].share
        assert found.by_answers is not None
        assert found.by_decisions is not None
        assert list(found.by_answers.unnoticed) == [50, 100, 200]
        assert found.by_answers.gate.holds
        shares = [rate.share for rate in found.by_answers.unnoticed.values()]
        assert shares == sorted(shares)
        assert shares[-1] >= 0.25
        assert found.by_decisions.unnoticed.share == 1
        assert found.by_decisions.answers > 60
        assert found.by_decisions.distance is not None
        assert found.by_decisions.distance > 0.8
        assert "Screen for" not in capsys.readouterr().err


class TestAnotherBundle:
    @pytest.mark.parametrize(
        ("entry", "line"),
        [
            (
                {"factory": "evil:build"},
                "its classifier is built by 'evil:build', the config's by 'digits_cnn': name the",
            ),
            ({"class_names": [str(k) for k in range(10)]}, "is of other images or classes than"),
        ],
    )
    def test_what_is_refused(self, digits_run: DigitsRun, bundle: Path, entry: dict[str, Any], line: str) -> None:
        """Before anything of it is imported."""
        edit(bundle, lambda manifest: manifest["classifier"].update(entry))
        config = load_config(digits_run.config_path)
        with pytest.raises(ConfigError, match=line):
            evaluate_aware(digits_run.bundle, config, Effort.QUICK, [0.2], victims=2, other=Bundle.open(bundle))


class TestCommand:
    @pytest.mark.parametrize(
        ("options", "line"),
        [
            (
                ["--effort", "quick"],
                "--effort, --epsilon, --victims, --other and --served are for attackers who know BUNDLE: add --aware",
            ),
            (["--aware", "--effort", "qick"], "unknown effort 'qick': did you mean 'quick'?"),
            (
                ["--aware", "--epsilon", "8/0"],
                "--epsilon '8/0': expected a number in (0, 1], or a fraction such as 8/255",
            ),
            (["--aware", "--epsilon", "2"], "--epsilon '2': expected a number in (0, 1]"),
            (
                ["--aware", "--engine", "onnxruntime"],
                "--aware goes by torch, whose gradients it needs: leave --engine out",
            ),
        ],
    )
    def test_what_is_misspelt(
        self, digits_run: DigitsRun, capsys: pytest.CaptureFixture[str], options: list[str], line: str
    ) -> None:
        assert command(["evaluate", str(digits_run.bundle.path), str(digits_run.config_path), *options]) == 2
        assert line in " ".join(capsys.readouterr().err.replace("│", " ").split())

    @pytest.mark.acceptance
    @pytest.mark.lasting
    def test_on_digits(self, digits_run: DigitsRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        figures = tmp_path / "aware.json"
        options = ["--effort", "quick", "--epsilon", "0.2", "--victims", "30", "--json", str(figures)]
        named = ["evaluate", str(digits_run.bundle.path), str(digits_run.config_path), "--aware", *options]
        assert command(named) == 0
        shown = capsys.readouterr().out
        made: dict[str, Any] = json.loads(figures.read_text())
        assert made["bundle_id"] == digits_run.bundle.manifest.id
        assert made["attacks"] == ["selective", "weighted", TWICE]
        rows = {row["defence"]: row for row in made["rows"]}
        assert list(rows) == ["fused", "max_softmax"]
        fused = rows["fused"]
        assert (fused["epsilon"], fused["victims"]) == (0.2, 30)
        assert fused["aware"] is not None
        assert fused["aware"]["0.05"]["share"] >= max(0.7, fused["oblivious"]["0.05"]["share"] + 0.2)
        assert "not converged" not in shown or any(not g["holds"] for r in rows.values() for g in r["gates"].values())
        assert command(named) == 0  # by what was kept
        assert json.loads(figures.read_text()) == made

    def test_defences_by_name(self, digits_run: DigitsRun) -> None:
        """Defences are opened by name, the bundle's own first."""
        assert list(Crafter(digits_run.bundle.path, "", {"energy": np.zeros(1)}).defences()) == ["fused", "energy"]
