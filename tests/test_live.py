"""The live page: its figures by hand, who may look, and the page in a real browser while it is attacked."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from calibration_support import DigitsRun, changed
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page, expect
from prometheus_client import Metric
from pydantic import ValidationError
from review_support import answered, kept
from scipy.stats import betabinom
from service_support import config, frames, http_get, noise, process_serving, publish_tiny, running, untypical, wait_for
from torch import Tensor

import askance
from askance.answers import Answer, DetectorVerdict, Prediction, Screening, Verdict
from askance.calibration.attacks import PGD, PixelClassifier, perturb
from askance.calibration.inputs import load_inputs
from askance.judgement import rank
from askance.service.config import ServerConfig
from askance.service.guard.access import new_token
from askance.service.live.bands import CONFIDENCE, band
from askance.service.live.figures import Figures
from askance.service.live.noted import FLAGGED, LATEST, PACE_SECONDS, Notes, together
from askance.service.observability.metrics import BundleDescription, Metrics
from askance.service.review.store import ReviewStore

TOKEN, DIGEST = new_token()
OTHER, OTHER_DIGEST = new_token()
TINY = "service_support:TinyClassifier"
OBSERVABILITY = Path(__file__).resolve().parent.parent / "docs" / "observability.md"
CLIENTS = [
    {"name": "operator", "token_sha256": DIGEST, "roles": ["admin"]},
    {"name": "camera", "token_sha256": OTHER_DIGEST, "roles": ["predict"]},
]


@given(st.sampled_from([0.2, 0.05, 0.01]), st.integers(1, 3000), st.integers(1, 5000))
def test_bands_are_those_of_the_beta_binomial_law(level: float, calibrated: int, count: int) -> None:
    k = rank(level, calibrated)
    if k == 0:
        assert band(level, calibrated, count) == (0, 0)
        return
    low, high = betabinom.interval(CONFIDENCE, count, k, calibrated + 1 - k)
    assert band(level, calibrated, count) == pytest.approx((low / count, high / count), abs=1 / count + 1e-12)


def test_a_band_by_hand() -> None:
    assert band(0.05, 999, 0) == (0, 1)  # nothing is known of no image
    assert band(0.05, 10, 1000) == (0, 0)  # a table of ten never flags at 5%
    low, high = band(0.05, 10**6, 10_000)  # as good as binomial: 500 and 3.29 of its standard deviations, 21.8
    assert (low, high) == pytest.approx((0.0430, 0.0573), abs=0.0004)


def test_of_many_images_few_are_noted() -> None:
    """Looking costs no more where there is more traffic; flagged ones are not crowded out by others."""
    now = [0.0]
    notes = Notes(lambda: now[0])
    for i in range(1000):
        now[0] += PACE_SECONDS / 10
        notes.note(answered(Verdict.SUSPECT if i % 50 == 0 else Verdict.CLEAN))
    latest, flagged = notes.shown()
    assert len(flagged) == 20 == FLAGGED
    assert 100 <= len(latest) <= 125 < LATEST
    (one, *_) = flagged
    assert (one.client, one.label, one.verdict, one.place) == ("camera", "ant", "SUSPECT", (0.5, -1.0))
    assert one.words[0] == "ant (90.0%): SUSPECT; 50% of clean images are as suspicious"
    assert all(not noted.words for noted in latest if noted.verdict == "CLEAN")
    both = together([notes.shown(), ([], [])])
    assert both == (latest, flagged)


def described() -> BundleDescription:
    levels = {"suspect": 0.05, "adversarial": 0.01}
    return BundleDescription("id", "net", 7.0, ("ant", "bee"), ("introspection",), levels, "torch", ("classify",), 999)


def counted(metrics: Metrics, how: Verdict, p: float, client: str = "camera") -> None:
    flags = {Verdict.CLEAN: (), Verdict.SUSPECT: ("suspect",), Verdict.ADVERSARIAL: ("suspect", "adversarial")}[how]
    word = DetectorVerdict("introspection", 1.0, p, flags)
    screening = Screening(DetectorVerdict("fused", 1.0, p, flags), (word,))
    metrics.answered(Answer(Prediction(0, "ant", (0.9, 0.1)), how, screening), object(), client)


def test_figures_by_hand() -> None:
    now = [1000.0]
    metrics = Metrics(8, ["Screen"], ["camera", "gateway"])
    metrics.serves(described())
    figures = Figures(metrics.current, lambda: "serving", lambda: now[0])
    figures.sample()
    for _ in range(96):
        counted(metrics, Verdict.CLEAN, 0.3)
    for _ in range(3):
        counted(metrics, Verdict.SUSPECT, 0.03)
    counted(metrics, Verdict.ADVERSARIAL, 0.005, "gateway")
    for seconds in (0.002, 0.004, 0.004, 0.02):  # buckets up to 2.5, 5 and 25 ms
        metrics.finished("Screen", askance.service.errors.Code.OK, None, seconds)
    now[0] += 20
    shown = figures.now([], [])
    assert shown["verdicts"] == {"CLEAN": 96, "SUSPECT": 3, "ADVERSARIAL": 1}
    point = shown["points"][-1]
    assert point["images_per_second"] == 5
    assert point["flagged"]["suspect"]["share"] == 0.04
    assert (point["flagged"]["suspect"]["low"], point["flagged"]["suspect"]["high"]) == band(0.05, 999, 100)
    assert point["flagged"]["adversarial"]["share"] == 0.01
    (introspection, fused) = shown["detectors"]
    assert fused["p_values"] == introspection["p_values"] == [1, 3, 0, 96, 0]
    assert (fused["flags"], fused["colour"]) == ({"suspect": 4, "adversarial": 1}, "#d55e00")
    assert shown["clients"] == [
        {"name": "camera", "verdicts": {"CLEAN": 96, "SUSPECT": 3, "ADVERSARIAL": 0}},
        {"name": "gateway", "verdicts": {"CLEAN": 0, "SUSPECT": 0, "ADVERSARIAL": 1}},
    ]
    assert shown["classes"][0] == {"name": "ant", "predicted": 100, "adversarial": 1}
    assert shown["milliseconds"]["p50"] == pytest.approx(2.5 + 2.5 * 0.5)  # the second of four: half of that bucket
    now[0] += 61  # none of these is of the last minute any more
    assert figures.now([], [])["points"][-1]["flagged"]["suspect"] == {"share": None, "low": 0.0, "high": 1.0}
    json.dumps(shown)


def test_before_a_bundle_is_there_nothing_is_said_of_levels() -> None:
    metrics, now = Metrics(8, ["Screen"]), [0.0]
    figures = Figures(metrics.current, lambda: "loading", lambda: now[0])
    shown = figures.now([], [])
    assert (shown["state"], shown["levels"], len(shown["points"]), shown["bundle"]) == ("loading", {}, 1, None)
    metrics.serves(described())
    now[0] += 2
    shown = figures.now([], [])
    assert [point["flagged"].keys() for point in shown["points"]] == [{"suspect", "adversarial"}]


def test_the_numbers_are_those_of_prometheus() -> None:
    """Once the pool is published every count of the page is a sample of /metrics."""
    metrics = Metrics(8, ["Screen"], ["camera"], 1, 0.0)
    metrics.serves(described())
    for verdict, p in ((Verdict.CLEAN, 0.3), (Verdict.SUSPECT, 0.03)):
        counted(metrics, verdict, p)

    def samples(families: list[Metric]) -> dict[tuple[str, str], float]:
        return {(s.name, str(sorted(s.labels.items()))): s.value for f in families for s in f.samples}

    shown = {key: value for key, value in samples(metrics.current()).items() if not key[0].endswith("_created")}
    scraped = samples(list(metrics.registry.collect()))
    assert {key: scraped[key] for key in shown} == shown
    assert len(shown) > 100


def got(url: str, authorization: str | None = None, **headers: str) -> tuple[int, str]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, headers={"Accept": "text/html"} | named)
    if authorization is not None:
        request.add_header("Authorization", authorization)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def basic(token: str) -> str:
    return f"Basic {base64.b64encode(f'me:{token}'.encode()).decode()}"


def asking(settings: ServerConfig, ask: Callable[[str], None]) -> None:
    async def main() -> None:
        async with running(settings=settings) as service:
            await asyncio.to_thread(ask, f"http://127.0.0.1:{service.server.ports.metrics_port}")

    asyncio.run(main())


PATHS = (
    "/",
    "/live/live.js",
    "/live/live.css",
    "/live/colours.css",
    "/live/charts.js",
    "/live/map",
    "/live/review",
    "/live/events",
)


def test_the_page_takes_the_role_admin() -> None:
    def ask(url: str) -> None:
        for path in PATHS:
            for nobody in (None, f"Bearer {OTHER}", basic(OTHER), "Basic ?", basic("no token"), "Basic"):
                status, text = got(url + path, nobody)
                assert status == 401, (path, nobody)
                assert text.count("\n") == 1
            if path != "/live/events":
                for operator in (f"Bearer {TOKEN}", basic(TOKEN)):
                    assert got(url + path, operator)[0] == 200, path
        assert http_get(f"{url}/healthz") == (200, "serving\n")
        assert http_get(f"{url}/") == (200, "serving\n")  # whoever does not ask for HTML is a probe
        assert http_get(f"{url}/metrics")[0] == 200

    asking(config(clients=CLIENTS), ask)


def test_without_clients_this_machine_alone_looks() -> None:
    def ask(url: str) -> None:
        assert got(f"{url}/")[0] == 200
        assert got(f"{url}/", Host="localhost:1")[0] == got(f"{url}/", Host="[::1]:1")[0] == 200
        for host in ("rebound.example", "rebound.example:9500", "10.0.0.1", "127.0.0.1.rebound.example", ""):
            status, text = got(f"{url}/", Host=host)
            assert (status, text.count("\n")) == (403, 1), host

    asking(config(), ask)


@pytest.mark.parametrize(
    "settings",
    [
        {"clients": [CLIENTS[1]]},
        {"metrics": {"token_sha256": DIGEST}},
        {"metrics_host": "0.0.0.0"},
    ],
    ids=["no admin among the clients", "the metrics take a token", "on all addresses"],
)
def test_where_nobody_is_an_admin_nobody_looks(settings: dict[str, Any]) -> None:
    def ask(url: str) -> None:
        for authorization in (None, basic(TOKEN), basic(OTHER)):
            status, text = got(f"{url}/", authorization)
            assert (status, text.count("\n")) == (403, 1)

    asking(config(**settings), ask)


def test_it_can_be_switched_off() -> None:
    def ask(url: str) -> None:
        assert got(f"{url}/") == (200, "serving\n")
        assert [got(url + path)[0] for path in PATHS[1:]] == [404] * 7

    asking(config(live={"page": False}), ask)


def test_no_page_can_be_framed_and_none_runs_what_is_not_ours() -> None:
    def ask(url: str) -> None:
        request = urllib.request.Request(f"{url}/", headers={"Accept": "text/html"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            policy, page = answer.headers["Content-Security-Policy"], answer.read().decode()
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cache-Control"] == "no-store"
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert "://" not in page  # no other host
        assert "style=" not in page

    asking(config(), ask)


def test_settings_out_of_range_are_refused() -> None:
    for review in ({"clean_share": 1.5}, {"keep_days": 0}, {"max_bytes": 1}, {"foldr": "x"}):
        with pytest.raises(ValidationError):
            ServerConfig.model_validate({"review": review})


def test_workers_show_as_one(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "bundle", TINY)
    settings = tmp_path / "s.toml"
    settings.write_text('port = 0\nmetrics_port = 0\n[review]\nfolder = "kept"\n')
    with process_serving(tmp_path / "bundle", "--config", settings, "--workers", "2", "--disclose") as (_, serving):
        for seed in range(8):
            with askance.Client(serving.target) as client:
                client.screen(noise(seed))
        with askance.Client(serving.target) as client:
            told = client.screen(untypical())
        assert told.verdict in (Verdict.SUSPECT, Verdict.ADVERSARIAL)
        url = f"http://{serving.metrics_host}:{serving.metrics_port}"
        shown = first_event(url, lambda event: sum(event["verdicts"].values()) == 9 and event["flagged"])
        assert shown["state"] == "serving"
        assert shown["flagged"][0]["verdict"] == told.verdict
        assert sum(shown["clients"][0]["verdicts"].values()) == 9
        wait_for(lambda: json.loads(got(f"{url}/live/review")[1]))  # a thread of its own keeps it
        kept = json.loads(got(f"{url}/live/review")[1])
        assert [one["verdict"] for one in kept][:1] == [told.verdict]


def first_event(url: str, good: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """The first figures of which it is true; the test's own time limit is the limit."""
    while True:
        with urllib.request.urlopen(f"{url}/live/events", timeout=30) as stream:
            for line in stream:
                if line.startswith(b"data: ") and good(event := json.loads(line[6:])):
                    found: dict[str, Any] = event
                    return found


# In a real browser: last, because its driver has an event loop that runs until the module ends


@dataclass(frozen=True)
class Guarded:
    """The digits' classifier behind a server that keeps what it flags, and images to ask it with."""

    target: str
    url: str
    clean: Tensor
    attacked: Tensor


@pytest.fixture(scope="module")
def guarded(browser: Browser, digits_run: DigitsRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("live")
    clients = "\n".join(
        f'[[access.clients]]\nname = "{one["name"]}"\ntoken_sha256 = "{one["token_sha256"]}"\nroles = {one["roles"]}'
        for one in CLIENTS
    )
    settings = folder / "s.toml"
    settings.write_text(f'port = 0\nmetrics_port = 0\n[review]\nfolder = "kept"\n{clients}\n'.replace("'", '"'))
    inputs = load_inputs(digits_run.config)
    clean = inputs.splits["evaluate"]
    pixels = clean.x[:40].float() / 255 if clean.x.dtype == torch.uint8 else clean.x[:40]
    predict = PixelClassifier(inputs.classifier, inputs.preprocessing)
    attacked = perturb(predict, PGD(name="pgd", kind="pgd", epsilon=0.3), pixels, clean.y[:40], 0)
    with process_serving(digits_run.bundle.path, "--config", settings) as (_, serving):
        yield Guarded(serving.target, f"http://{serving.metrics_host}:{serving.metrics_port}", pixels, attacked)


def looked_at(browser: Browser, guarded: Guarded, width: int, scheme: Any) -> tuple[Page, list[str]]:
    said: list[str] = []
    page = browser.new_page(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        http_credentials={"username": "anyone", "password": TOKEN},
    )
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{guarded.url}/")
    page.locator("#state.serving").wait_for()
    page.locator("#flagged svg").first.wait_for()
    return page, said


@pytest.fixture
def proxied(guarded: Guarded, tmp_path: Path) -> Iterator[Guarded]:
    """The same behind HAProxy, by the configuration in the docs."""
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed: apt-get install haproxy")
    text = re.search(r"```haproxy\n(.*?)```", OBSERVABILITY.read_text(), re.DOTALL)
    assert text is not None
    with socket.create_server(("127.0.0.1", 0)) as listening:
        places = ("127.0.0.1:8080", f"fd@{listening.fileno()}"), ("127.0.0.1:9500", guarded.url.removeprefix("http://"))
        (tmp_path / "haproxy.cfg").write_text(changed(text[1], *places))
        command = ["haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg")]
        with subprocess.Popen(command, pass_fds=[listening.fileno()], stdout=subprocess.DEVNULL) as process:
            yield replace(guarded, url=f"http://127.0.0.1:{listening.getsockname()[1]}/askance")
            process.terminate()


def ask(guarded: Guarded, images: Tensor, times: int) -> None:
    with askance.Client(guarded.target, credentials=askance.Credentials(token=OTHER)) as client:
        for _ in range(times):
            for image in images.numpy():
                client.screen(image)


def test_an_attack_is_seen_on_the_page_and_kept_for_review(guarded: Guarded, browser: Browser) -> None:
    """Clean traffic stays in its band; PGD leaves it within ten seconds, and its images wait for a person."""
    ask(guarded, guarded.clean, 5)
    page, said = looked_at(browser, guarded, 1400, "light")
    beyond = page.locator("#flagged [data-level=suspect]")
    expect(page.locator("#totals dd").first).to_have_text("200")
    assert beyond.get_attribute("data-beyond") == "false"
    start = time.monotonic()
    ask(guarded, guarded.attacked[:14], 3)  # fewer than the page shows: none makes room for another while it is read
    page.locator("#flagged [data-level=suspect][data-beyond=true]").wait_for(timeout=10_000)
    assert time.monotonic() - start < 10, "the page shows an attack within ten seconds"
    page.locator("#last li.ADVERSARIAL, #last li.SUSPECT").first.wait_for()
    kept = page.locator("#kept > li").first
    kept.wait_for()
    assert "camera" in kept.inner_text()
    kept.scroll_into_view_if_needed()
    expect(kept.locator("img")).to_have_js_property("naturalWidth", 8)
    image = kept.locator("img").get_attribute("src")
    assert image is not None
    this = page.locator(f'#kept > li:has(img[src="{image}"])')  # others may be kept meanwhile, and stand before it
    this.get_by_role("button", name="attack").click()
    this.locator("button[aria-pressed=true] >> text=attack").wait_for()
    this.locator("summary").click()
    this.get_by_role("button", name="attack").focus()
    ask(guarded, guarded.attacked[:5], 1)
    expect(page.locator("#kept > li").first.locator(f'img[src="{image}"]')).to_have_count(0)  # others stand before it
    expect(this.locator("details")).to_have_attribute("open", "")
    expect(this.get_by_role("button", name="attack")).to_be_focused()
    listed = json.loads(got(f"{guarded.url}/live/review", basic(TOKEN))[1])
    assert [one["marked_by"] for one in listed if one["id"] == image.split("/")[-2]] == ["operator"]
    assert said == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_everybody_can_read_it(guarded: Guarded, browser: Browser, width: int, scheme: str) -> None:
    ask(guarded, guarded.clean[:5], 1)
    ask(guarded, guarded.attacked[:5], 1)
    page, said = looked_at(browser, guarded, width, scheme)
    page.locator("#legend span").first.wait_for()
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")] == []
    across, wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert across <= wide
    assert page.locator("#p-values svg").count() == 5
    assert all(label for label in page.locator("svg[role=img]").evaluate_all("all => all.map(e => e.textContent)"))
    before = page.evaluate("document.documentElement.scrollHeight")
    page.wait_for_timeout(2500)
    assert page.evaluate("document.documentElement.scrollHeight") == before, "nothing jumps"
    assert said == []
    page.close()


def test_it_works_behind_a_proxy_under_a_path_of_its_own(proxied: Guarded, browser: Browser) -> None:
    ask(proxied, proxied.attacked[:10], 1)
    page, said = looked_at(browser, proxied, 1400, "light")
    kept = page.locator("#kept > li").first
    kept.scroll_into_view_if_needed()
    expect(kept.locator("img")).to_have_js_property("naturalWidth", 8)
    image = kept.locator("img").get_attribute("src")
    this = page.locator(f'#kept > li:has(img[src="{image}"])')
    this.get_by_role("button", name="unsure").click()
    this.locator("button[aria-pressed=true] >> text=unsure").wait_for()
    before = int(page.locator("#totals dd").first.inner_text())
    ask(proxied, proxied.clean[:10], 1)
    expect(page.locator("#totals dd").first).to_have_text(f"{before + 10}")
    assert said == []
    assert got(proxied.url.removesuffix("/askance") + "/", basic(TOKEN))[0] == 403
    assert got(proxied.url, basic(TOKEN))[0] == 200
    page.close()


def test_a_mark_comes_from_this_page_alone(guarded: Guarded) -> None:
    """Another site in the same browser, which sends the password along, cannot mark anything."""
    ask(guarded, guarded.attacked[:10], 1)

    def marks() -> dict[str, str | None]:
        return {one["id"]: one["mark"] for one in json.loads(got(f"{guarded.url}/live/review", basic(TOKEN))[1])}

    while not (there := marks()):
        pass
    which = next(iter(there))
    where = f"{guarded.url}/live/review/{which}/mark"

    def post(body: bytes, **headers: str) -> int:
        named = {"Authorization": basic(TOKEN), "Content-Type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        try:
            with urllib.request.urlopen(urllib.request.Request(where, body, named), timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    assert post(b'"attack"', Sec_Fetch_Site="cross-site") == 403
    assert post(b'"attack"', Content_Type="text/plain") == 403
    assert post(b'"atack"') == post(b"{") == post(b'"' + b"x" * 2000 + b'"') == 400
    assert marks()[which] == there[which]
    for word in ("unsure", "attack"):
        assert post(json.dumps(word).encode()) == 200
        assert marks()[which] == word


def test_who_probes_is_on_the_page_and_is_let_off_there(browser: Browser, tmp_path: Path) -> None:
    publish_tiny(tmp_path / "bundle", TINY)
    (tmp_path / "s.toml").write_text(
        'port = 0\nmetrics_port = 0\n[review]\nfolder = "kept"\nclean_share = 1\n'
        '[probing]\nresponse = "block"\nmost_alike = 20\n'  # as of photos
    )
    with closing(ReviewStore(tmp_path / "kept")) as store:
        store.keep(kept("of-another"), b"")
    with process_serving(tmp_path / "bundle", "--config", tmp_path / "s.toml") as (_, serving):
        client, page = askance.Client(serving.target), browser.new_page()
        for frame in frames(21):
            client.screen(frame)
        page.goto(f"http://127.0.0.1:{serving.metrics_port}/", wait_until="domcontentloaded")
        named = page.locator("#named li")
        expect(named).to_contain_text("too many of its images are nearly the same, after 21 images")
        assert Axe().run(page).violations_count == 0
        with pytest.raises(askance.ServiceError, match="looks like an attack"):
            client.screen(noise(1))
        expect(page.locator("#kept > li")).to_have_count(22)
        named.get_by_role("button", name="what is kept of it").click()
        expect(page.locator("#whom")).to_have_text("Only those of ipv4:127.0.0.1.")
        expect(page.locator("#kept > li")).to_have_count(21)
        page.get_by_role("button", name="all clients").click()
        expect(page.locator("#of-whom")).to_be_hidden()
        named.get_by_role("button", name="let off").click()
        expect(page.locator("#none-named")).to_be_visible()
        assert isinstance(client.screen(noise(1)), Answer)
        page.close()
