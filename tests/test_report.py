"""The report: its data by hand, its words, and the page in a real browser."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from calibration_support import CONFIGS, DigitsRun
from marks import LASTING
from playwright.sync_api import Browser, Page

import askance
from askance.__main__ import run
from askance.answers import FUSED
from askance.calibration.attacks import FGSM
from askance.calibration.config import load_config
from askance.calibration.curves import curves
from askance.calibration.evaluation import AttackedSet, Evidence, SetScores, evaluate
from askance.calibration.pipeline import calibrate
from askance.calibration.report import CURVES, PAGE, redrawn, report
from askance.colours import of_scorers
from askance.drawing.summary import Light, trust, words
from askance.evaluation import AttackFigures, ClassFigures, ClassifierFigures, Evaluation
from askance.inside import Codes, Inside
from askance.inside.curves import Curves
from askance.judgement import Levels
from askance.judgement.conformal import table
from askance.screening.bundle import INSIDE

LEVELS = Levels()
WIDTHS, SCHEMES = (1400, 390), ("light", "dark")
MOST_BYTES = 12e6


def evidence() -> Evidence:
    """A thousand clean scores, and four attacked images of which three succeed."""
    zeros = torch.zeros(1000, dtype=torch.long)
    scores = torch.arange(1000) / 1000
    clean = SetScores({FUSED: scores, "introspection": scores}, zeros, zeros)
    suspicious = torch.tensor([0.95, 0.995, 2.0, 0.1])
    columns = {FUSED: suspicious, "introspection": torch.tensor([0.1, 2.0, 2.0, 0.1])}
    attacked = SetScores(columns, torch.tensor([1, 1, 1, 0]), zeros[:4])
    tables = {name: table(values.numpy()) for name, values in clean.columns.items()}
    return Evidence(clean, tables, [AttackedSet(FGSM(name="f", kind="fgsm", epsilon=0.1), attacked, {}, True)], {})


def figures_of(page: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    figures: list[dict[str, Any]] = json.loads(found.group(1))
    return figures


def test_curves_by_hand() -> None:
    drawn = curves(evidence(), LEVELS)
    curve = drawn.detected["f"][FUSED]
    assert len(drawn.rates) == len(curve) == 71
    # three successful attacks: above all 1,000 clean, above all but 5 (the last is .995 itself), above all but 50
    for rate, expected in ((0.001, 1 / 3), (0.01, 2 / 3), (0.06, 1.0)):
        at = int(np.searchsorted(drawn.rates, rate))
        assert curve[at] == pytest.approx(expected, abs=1e-4)
    assert len(drawn.edges[FUSED]) == 41
    assert sum(drawn.shares[FUSED]["clean"]) == pytest.approx(1, abs=0.01)
    assert sum(drawn.shares[FUSED]["f"]) == pytest.approx(1, abs=0.01)
    assert drawn.thresholds[FUSED]["suspect"] == pytest.approx(0.95, abs=0.001)
    assert drawn.p_values[FUSED] == pytest.approx([0.05] * 20, abs=0.002)  # among themselves
    assert drawn.flagged == {"f": {"introspection": 2, "": 1}}


def few(**changes: Any) -> Evaluation:
    content: dict[str, Any] = {
        "classifier": ClassifierFigures(accuracy=0.97, images=1000),
        "target_flag_rate": {"suspect": 0.05, "adversarial": 0.01},
        "clean_flag_rate": {"suspect": 0.04, "adversarial": 0.01},
        "clean_flag_rate_interval": {"suspect": (0.03, 0.07), "adversarial": (0.003, 0.02)},
        "splits": {"calibrate": 3000, "fuse": 3000},
    }
    return Evaluation(**(content | changes))


def a_map(topographic_error: float) -> Codes:
    return Codes(
        side=2,
        fitted=((4, 0, 0, 0),),
        seen=((1, 0, 0, 0),),
        centres=((0.0, 0.0),),
        information=0,
        purity=1,
        spreads=(0,),
        quantization_error=1,
        topographic_error=topographic_error,
    )


@pytest.mark.parametrize(
    ("changes", "light", "why"),
    [
        ({}, Light.GREEN, ""),
        ({"splits": {"calibrate": 250, "fuse": 3000}}, Light.AMBER, "250 images of calibrate are behind its tables"),
        (
            {"splits": {"calibrate": 3000, "fuse": 120}},
            Light.RED,
            "120 images of fuse are behind its tables: no p-value",
        ),
        ({"clean_flag_rate": {"suspect": 0.08}}, Light.RED, "8.0% of the clean evaluation images are flagged suspect"),
        ({"clean_flag_rate": {"suspect": 0.01}}, Light.AMBER, "it could catch more than it does"),
        (
            {"doubts": {"library_network": {"conv1": "too few rows"}}},
            Light.AMBER,
            "library network learns nothing from",
        ),
        (
            {"class_clean_flag_rate": {"cat": ClassFigures(images=200, suspect=0.15, adversarial=0.1)}},
            Light.AMBER,
            "clean images of cat are flagged 3.0 times as often as is promised of all",
        ),
        ({"class_clean_flag_rate": {"cat": ClassFigures(images=20, suspect=0.15, adversarial=0.1)}}, Light.GREEN, ""),
    ],
    ids=["well", "few", "too few", "too many flags", "too few flags", "a layer", "a class", "a small class"],
)
def test_whether_to_trust_it(changes: dict[str, Any], light: Light, why: str) -> None:
    found, reasons = trust(few(**changes), None)
    assert found is light
    assert [reason for reason in reasons if why in reason.why] if why else not reasons


def test_a_twisted_map_is_no_good() -> None:
    for error, light in ((0.2, Light.GREEN), (0.4, Light.AMBER)):
        inside = Inside(class_names=("a",), labels=(0,), predicted=(0,), codes={"conv1": a_map(error)})
        assert trust(few(), inside)[0] is light


def test_the_worst_reason_comes_first() -> None:
    light, reasons = trust(few(splits={"calibrate": 250, "fuse": 100}), None)
    assert light is Light.RED
    assert [reason.light for reason in reasons] == [Light.RED, Light.AMBER]


def test_words_by_hand() -> None:
    caught = {name: {FUSED: share} for name, share in (("a_1", 0.9), ("b", 0.3), ("c", 0.4))}
    attacks = {name: AttackFigures(attempted=9, successful=9) for name in caught}
    said = words("cats", few(attacks=attacks, forward_passes={FUSED: 4}).model_copy(update={"tpr_at_fpr_5": caught}))
    assert said["Guards"] == "cats, which gets 97.0% of 1,000 evaluation images right."
    assert said["False alarms"].startswith("Of clean images 4.0% are flagged suspect, where 5.0% is promised; ")
    assert said["Catches"].startswith("40% of the images of the median of 3 attacks, at 5% false alarms; 90% of")
    assert said["Misses"] == "70% of b, and more than half of c."
    assert said["Costs"].startswith("4 forward passes")


def test_every_detector_has_one_colour_and_strangers_have_others() -> None:
    found = of_scorers(["fused", "theirs", "introspection", "mahalanobis", "fused_single_pass"])
    assert found["fused"] == found["fused_single_pass"]
    assert len({found[name] for name in ("fused", "theirs", "introspection", "mahalanobis")}) == 4
    assert of_scorers(["introspection", "theirs"])["introspection"] == found["introspection"]


def test_names_and_scripts_stay_text() -> None:
    shown = evaluate(evidence(), LEVELS, ("a",)).model_copy(update={"doubts": {"x": {"conv1": "<b>why</b>"}}})
    inside = Inside(class_names=("</script>",), labels=(0,), predicted=(0,))
    page = report("</script> & <i>friends</i>", shown, evidence(), LEVELS, inside)[PAGE].decode()
    assert "<h1>askance: &lt;/script&gt; &amp; &lt;i&gt;friends&lt;/i&gt;</h1>" in page
    assert "<td>&lt;b&gt;why&lt;/b&gt;</td>" in page
    assert page.count("</script>") == 3
    assert figures_of(page)


def test_a_bundle_has_its_report(digits_run: DigitsRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = digits_run.bundle
    page = bundle.content(PAGE).decode()
    assert len(page) < MOST_BYTES
    assert redrawn(bundle) == page
    drawn = Curves.model_validate_json(bundle.content(CURVES))
    assert set(drawn.detected) == {"fgsm", "pgd"}
    assert len(Inside.model_validate_json(bundle.content(INSIDE)).labels) == 300
    for row in ("fgsm (seen)", "pgd", "worst case"):
        assert f"<td>{row}</td>" in page
    for figure in (bundle.evaluation().auroc["pgd"][FUSED], bundle.evaluation().tpr_at_fpr_1["fgsm"]["max_softmax"]):
        assert f"{figure:.3f}" in page
    assert run(["report", str(bundle.path), "--out", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    assert (tmp_path / "report.html").stat().st_mode & 0o777 == 0o600  # it shows images
    assert f"page: {tmp_path / 'report.html'}, for a browser" in capsys.readouterr().out


def test_a_bundle_without_the_data_is_one_line(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(published)]) == 2
    shown = capsys.readouterr().err
    assert "has no report/curves.json, from which its report is drawn: calibrate it again" in shown
    assert len(shown.splitlines()) == 1


def test_the_gallery_shows_the_worst(digits_run: DigitsRun) -> None:
    gallery = Inside.model_validate_json(digits_run.bundle.content(INSIDE)).gallery
    assert gallery is not None
    alarms, missed = ([one.p_values[FUSED] for one in part] for part in (gallery.alarms, gallery.missed))
    assert alarms == sorted(alarms)
    assert alarms[0] <= 0.05
    assert missed == sorted(missed, reverse=True)
    assert missed[0] > alarms[0]
    assert {one.of for one in gallery.missed} == {"fgsm", "pgd"}
    assert all(one.label != one.predicted for one in gallery.missed)
    with askance.open(digits_run.bundle.path) as screen:
        for one in (*gallery.missed, *gallery.alarms[:3]):
            answer = screen(base64.b64decode(one.image))
            assert answer.prediction is not None
            assert answer.screening is not None
            assert answer.prediction.index == one.predicted
            if one.of == "clean":  # attacked ones were not rounded to a file's steps when they were read
                assert answer.screening.fused.p_value == pytest.approx(one.p_values[FUSED], abs=0.01)


def test_every_axis_names_its_unit(digits_run: DigitsRun) -> None:
    figures = figures_of(digits_run.bundle.content(PAGE).decode())
    assert len(figures) > 30
    for figure in figures:
        axes = {name: axis for name, axis in figure["layout"].items() if re.fullmatch(r"[xy]axis", name)}
        assert set(axes) == {"xaxis", "yaxis"}
        assert all(axis["title"]["text"] for axis in axes.values()), figure["layout"]


VIEWS = [(width, scheme) for width in WIDTHS for scheme in SCHEMES]
SMALLER = {"fit": 600, "held_out": 400, "calibrate": 250, "fuse": 250, "evaluate": 300}  # images
REAL = [pytest.param(name, marks=[pytest.mark.data, *LASTING]) for name in ("mnist", "cifar10")]


@pytest.fixture(scope="module")
def real_page(request: pytest.FixtureRequest, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a shipped config, calibrated on some of its images, with one attack and no views."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ASKANCE_DATA", str(data_root))
        config = load_config(CONFIGS / f"{request.param}.toml")
        named = config.splits.model_dump()
        evaluation = config.evaluation.model_copy(
            update={"attacks": (FGSM(name="fgsm", kind="fgsm", epsilon=0.1),), "attacked_images": 60, "ladder": False}
            | {"controls": (), "out_of_distribution": (), "baselines": ("max_softmax",), "benign_images": 0}
        )
        trained_less = dict(config.detectors)["introspection"].model_copy(update={"cycles": 2})
        small = config.model_copy(
            update={
                "splits": config.splits.model_copy(
                    update={name: _first(named[name], count) for name, count in SMALLER.items()}
                ),
                "detectors": config.detectors.model_copy(update={"constellation": None, "introspection": trained_less}),
                "evaluation": evaluation,
            }
        )
        return calibrate(small, tmp_path_factory.mktemp(request.param) / "bundle").path / PAGE


def _first(split: str, count: int) -> str:
    """The first of a split's images: 400 of "test[2000:4500]" are "test[2000:2400]"."""
    pool, _, rest = split.partition("[")
    start = int(rest.partition(":")[0] or 0)
    return f"{pool}[{start}:{start + count}]"


@contextmanager
def scrolled(browser: Browser, file: Path, view: tuple[int, Any]) -> Iterator[tuple[Page, list[str]]]:
    """A report, scrolled through; what the console said."""
    width, scheme = view
    said: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.resolve().as_uri())
    for place in page.locator(".figure").all():
        place.scroll_into_view_if_needed()
        place.locator("svg").first.wait_for()
    yield page, said
    page.close()


@pytest.fixture(scope="module", params=VIEWS, ids=lambda of: f"{of[0]}-{of[1]}")
def opened(request: pytest.FixtureRequest, browser: Browser, digits_run: DigitsRun) -> Iterator[tuple[Page, list[str]]]:
    """The digits' report."""
    with scrolled(browser, digits_run.bundle.path / PAGE, request.param) as shown:
        yield shown


@pytest.mark.parametrize("real_page", REAL, indirect=True)
def test_reports_of_real_data_can_be_read_by_everybody(real_page: Path, browser: Browser) -> None:
    assert real_page.stat().st_size < MOST_BYTES
    for view in VIEWS:
        with scrolled(browser, real_page, view) as (page, said):
            assert said == []
            assert page.locator(".figure").count() >= 11
            across, wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert across <= wide
            assert serious(page) == []
    figures = figures_of(real_page.read_text())
    for axis in (of["layout"][name] for of in figures for name in ("xaxis", "yaxis")):
        assert axis["title"]["text"]


def test_a_browser_shows_every_panel(opened: tuple[Page, list[str]]) -> None:
    page, said = opened
    assert said == []
    places = page.locator(".figure")
    assert places.count() == page.locator("section:has(.figure)").count() >= 11
    for place in places.all():
        assert place.locator("svg.main-svg").count() >= 1
    across, wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert across <= wide
    page.locator("select[data-of=attacks]").select_option("tpr_at_fpr_1")
    assert page.locator("#attacks > div:visible").get_attribute("data-name") == "tpr_at_fpr_1"
    choice = page.locator("section:has(h2:text('The network, sorted')) select")
    choice.select_option(index=1)
    page.locator("section:has(h2:text('The network, sorted')) .figure >> text=unit, sorted (10 of 10)").wait_for()


def test_everybody_can_read_it(opened: tuple[Page, list[str]]) -> None:
    assert serious(opened[0]) == []


def serious(page: Page) -> list[tuple[str, str]]:
    """What axe finds that keeps somebody from reading it."""
    found = Axe().run(page).response["violations"]
    return [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
