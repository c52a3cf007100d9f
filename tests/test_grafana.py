"""The dashboard of deploy/grafana: of Grafana's schema, in PromQL that parses, on metrics and labels that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, get_type_hints

import pytest
from pydantic import ConfigDict, TypeAdapter, ValidationError
from service_support import tiny_served

from askance.colours import COLOURS
from askance.service.observability.metrics import Metrics
from askance.service.protocols import METHODS

DEPLOY = Path(__file__).parents[1] / "deploy"
FOLDER = DEPLOY / "grafana"
BOARD: dict[str, Any] = json.loads((FOLDER / "dashboards" / "askance.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
TARGETS: list[dict[str, Any]] = [target for panel in PANELS for target in panel["targets"]]
ANNOTATIONS: list[dict[str, Any]] = BOARD["annotations"]["list"]
VARIABLES: list[dict[str, Any]] = BOARD["templating"]["list"]
EXPRESSIONS: list[str] = [target["expr"] for target in TARGETS] + [one["expr"] for one in ANNOTATIONS]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
SCRAPED = {"job", "instance"}  # labels that Prometheus adds
RECORDED = set(re.findall(r"- record: (\S+)", (DEPLOY / "prometheus" / "rules.yml").read_text()))


def known() -> dict[str, dict[str, set[str]]]:
    """The labels of each metric, and their values: the server's own, the rules', and Prometheus' own."""
    metrics = Metrics(32, tuple(METHODS))
    metrics.serves(tiny_served().description())
    labels: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for family in metrics.registry.collect():
        for sample in family.samples:
            for name, value in sample.labels.items():
                labels[sample.name][name].add(value)
            labels[sample.name]  # one without labels, too
    alerts = {"alertname": set[str](), "alertstate": {"pending", "firing"}, "severity": {"warning", "critical"}}
    return labels | {name: {} for name in RECORDED} | {"up": {}, "ALERTS": alerts}


KNOWN = known()
SELECTORS = [found for text in EXPRESSIONS for found in re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", text)]


def test_every_metric_is_one_that_exists() -> None:
    assert {name for name, _ in SELECTORS} <= set(KNOWN)
    outside = [re.sub(r"\{[^}]*\}", "", text) for text in EXPRESSIONS]
    assert sum(len(re.findall(r"\b(?:askance[_:]\w+|up|ALERTS)", text)) for text in outside) == len(SELECTORS)


def test_every_label_and_value_is_one_that_exists() -> None:
    literal = 0
    for metric, matchers in SELECTORS:
        for label, value in re.findall(r'(\w+)\s*(?:=~|!=|!~|=)\s*"([^"]*)"', matchers):
            if label in SCRAPED:
                assert value == f"${label}"
            elif label != "alertname":
                assert set(value.split("|")) <= KNOWN[metric][label]
                literal += 1
    assert literal > 10
    assert {match for text in EXPRESSIONS for match in re.findall(r'alertname=~"([^"]+)"', text)} == {"Askance.*"}


def test_every_label_that_is_grouped_by_or_shown_exists() -> None:
    for text, legend in [(target["expr"], target["legendFormat"]) for target in TARGETS]:
        metrics = re.findall(r"([a-zA-Z_:][\w:]*)\{", text)
        labels = SCRAPED.union(*(KNOWN[metric] for metric in metrics))
        grouped = {label for found in re.findall(r"by \(([^)]*)\)", text) for label in found.split(", ")}
        assert grouped <= labels
        shown = set(re.findall(r"\{\{(\w+)\}\}", legend))
        assert shown <= (grouped or labels)


def test_the_variables_ask_for_what_exists() -> None:
    assert [one["name"] for one in VARIABLES] == ["datasource", "job", "instance"]
    for one in VARIABLES[1:]:
        metric, _, label = re.fullmatch(r"label_values\((\w+)(\{.*\})?, (\w+)\)", one["query"]["query"]).groups()  # type: ignore[union-attr]
        assert (metric in KNOWN, label) == (True, one["name"])
    used = {name for text in EXPRESSIONS for name in re.findall(r"\$(\w+)", text)}
    assert used == {"job", "instance", "__rate_interval", "__range"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus")
def test_every_expression_is_promql(tmp_path: Path) -> None:
    values = {"__rate_interval": "4m", "__range": "6h", "job": "askance", "instance": "a|b"}
    expressions = [re.sub(r"\$(\w+)", lambda found: values[found[1]], text) for text in EXPRESSIONS]
    rules = [{"record": f"expression_{i}", "expr": text} for i, text in enumerate(expressions)]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # which is YAML, too
    done = subprocess.run(
        ["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(EXPRESSIONS)} rules found" in done.stdout


def test_panels_have_places_of_their_own() -> None:
    assert max(Counter(panel["id"] for panel in BOARD["panels"]).values()) == 1
    taken: Counter[tuple[int, int]] = Counter()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        taken.update(
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        )
    assert max(taken.values()) == 1
    assert len(taken) == 24 * (1 + max(y for _, y in taken))  # and there are no holes


@pytest.mark.parametrize("name", [name for name in COLOURS if not name.startswith("fused_")])
def test_a_detector_has_its_own_colour(name: str) -> None:
    """The same in every panel that tells detectors apart, and on every page and picture."""
    for panel in PANELS:
        legends = {target["legendFormat"] for target in panel["targets"] if "{{detector}}" in target["legendFormat"]}
        if legends and not (name == "fused" and 'detector!="fused"' in panel["targets"][0]["expr"]):
            matchers = {"byName": name, "byRegexp": f"/^{name},/"}
            (colour,) = (
                override["properties"]
                for override in panel["fieldConfig"]["overrides"]
                if override["matcher"]["options"] == matchers[override["matcher"]["id"]]
            )
            assert colour == [{"id": "color", "value": {"mode": "fixed", "fixedColor": COLOURS[name]}}]


def test_every_panel_says_what_it_shows() -> None:
    assert max(Counter(panel["title"] for panel in BOARD["panels"]).values()) == 1
    assert len(PANELS) > 20
    for panel in PANELS:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert [target["refId"] for target in panel["targets"]] == list("ABCD")[: len(panel["targets"])]


def test_whoever_looks_chooses_the_data_source() -> None:
    asking = [*PANELS, *TARGETS, *ANNOTATIONS, *VARIABLES[1:]]
    assert [one["datasource"] for one in asking] == [SOURCE] * len(asking)
    assert json.dumps(BOARD).count('"datasource": {') == len(asking)


def test_grafana_is_told_where_the_dashboards_are() -> None:
    mounted = re.search(r"path: (\S+)", (FOLDER / "provisioning" / "dashboards" / "askance.yml").read_text())
    assert mounted is not None
    assert FOLDER / PurePosixPath(mounted[1]).relative_to("/etc/grafana") == FOLDER / "dashboards"
    source = (FOLDER / "provisioning" / "datasources" / "prometheus.yml").read_text()
    assert re.findall(r"type: (\w+)", source) == ["prometheus"]


def lost(before: Any, after: Any, path: str = "dashboard") -> Iterator[str]:
    """What is in one piece of JSON and not, or otherwise, in another."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            if key in after:
                yield from lost(value, after[key], f"{path}.{key}")
            elif value is not None:
                yield f"{path}.{key}"
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from lost(one, other, f"{path}[{i}]")
    elif before != after:
        yield f"{path}: {before!r} is read as {after!r}"


def mistyped(value: Any, path: str = "dashboard") -> Iterator[str]:
    """Fields whose value is not of the type that Grafana's schema declares."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from mistyped(item, f"{path}[{key}]")
    elif type(value).__module__.startswith("grafana_foundation_sdk"):
        for name, hint in get_type_hints(type(value)).items():
            field = getattr(value, name)
            try:
                checked = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(field)
            except ValidationError as error:
                yield f"{path}.{name}: {error.errors()[0]['msg']}"
            else:
                if checked != field:  # "7" passes for 7
                    yield f"{path}.{name}: {field!r} instead of {checked!r}"
            yield from mistyped(field, f"{path}.{name}")


def test_the_dashboard_is_of_grafanas_schema() -> None:
    models = pytest.importorskip(
        "grafana_foundation_sdk.models.dashboard",
        reason="grafana-foundation-sdk, Grafana's own schema, is not installed",
    )
    import_module("grafana_foundation_sdk.cog.plugins").register_default_plugins()
    encoder = import_module("grafana_foundation_sdk.cog.encoder").JSONEncoder()
    read = models.Dashboard.from_json(BOARD)
    assert list(mistyped(read)) == []
    # The schema leaves an annotation open: "datasources just spread their query into the base object".
    open_ended = re.compile(r"dashboard\.annotations\.list\[\d+\]\.(titleFormat|textFormat|tagKeys)")
    unknown = lost(BOARD, json.loads(encoder.encode(read)))
    assert [field for field in unknown if not open_ended.fullmatch(field)] == []
