"""The page: words, tables and panels in one file that needs nothing else, on paper, on a phone, by day and by night."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template

from plotly.offline import get_plotlyjs

from askance.answers import FUSED
from askance.colours import in_words, stylesheet
from askance.drawing import detection, insides
from askance.drawing.panels import Panel
from askance.drawing.summary import Light, trust, words
from askance.evaluation import Evaluation
from askance.inside.curves import Curves
from askance.inside.data import Inside, Shown

NONE = "-"
TRUST = {
    Light.GREEN: "Trust it: nothing speaks against this calibration.",
    Light.AMBER: "Trust it with care:",
    Light.RED: "Do not trust it as it is:",
}
FIGURES = {
    "auroc": "AUROC",
    "tpr_at_fpr_5": "caught at 5% false alarms",
    "tpr_at_fpr_1": "caught at 1% false alarms",
    "tpr_at_fpr_01": "caught at 0.1% false alarms",
    "aupr": "area under precision and recall",
}
SPELLED = {"tpr_at_fpr_5": "tpr_at_fpr_0.05", "tpr_at_fpr_1": "tpr_at_fpr_0.01", "tpr_at_fpr_01": "tpr_at_fpr_0.001"}


def page(title: str, evaluation: Evaluation, curves: Curves, inside: Inside | None) -> str:
    """A calibration's report.

    Args:
        title: of what is guarded.
        evaluation: its figures.
        curves: what of them takes every score.
        inside: what goes on inside, where somebody looked.
    """
    panels = [*detection.panels(evaluation, curves), *(insides.panels(inside) if inside is not None else ())]
    return assembled(title, _summary(title, evaluation, inside), _tables(evaluation, inside), panels)


def assembled(title: str, summary: str, tables: str, panels: Sequence[Panel]) -> str:
    """A page of a summary and tables, in HTML, and of panels."""
    figures: list[str] = []
    sections = [_section(place, panel, figures) for place, panel in enumerate(panels)]
    return Template((files("askance.drawing") / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"askance: {title}"),
        colours=stylesheet(),
        summary=summary,
        tables=tables,
        panels="\n".join(sections),
        plotly=get_plotlyjs().replace("</script", "<\\/script"),
        # "</" would end the script element that holds them
        figures=f"[{','.join(figures)}]".replace("</", "<\\/"),
    )


def _summary(title: str, evaluation: Evaluation, inside: Inside | None) -> str:
    light, reasons = trust(evaluation, inside)
    said = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in words(title, evaluation).items())
    why = "".join(f"<li>{escape(reason.why)}</li>" for reason in reasons)
    listed = f"<ul>{why}</ul>" if why else ""
    return f'<div class="light {light}"><p><b>{TRUST[light]}</b></p>{listed}</div>\n<dl>{said}</dl>'


def _section(place: int, panel: Panel, figures: list[str]) -> str:
    """A panel's place on the page; its figures are added to the list."""
    first = len(figures)
    for made in panel.figures.values():
        content = json.loads(made.to_json())
        content["layout"].pop("template", None)
        figures.append(json.dumps({"data": content["data"], "layout": content["layout"]}, separators=(",", ":")))
    choice = ""
    if panel.choice and len(panel.figures) > 1:
        options = [(str(first + i), in_words(name)) for i, name in enumerate(panel.figures)]
        choice = _select(panel.choice, f"figure-{place}", options)
    return (
        f"<section><h2>{escape(panel.title)}</h2>{choice}"
        f'<div class="figure" id="figure-{place}" role="img" aria-label="{escape(panel.title)}" data-figure="{first}" '
        f'data-height="{panel.height}" style="min-height:{panel.height}px"></div>'
        f'<p class="faint">{escape(panel.caption)}</p></section>'
    )


def _select(label: str, of: str, options: Iterable[tuple[str, str]]) -> str:
    items = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options)
    return f'<p><label>{escape(label)} <select data-of="{of}">{items}</select></label></p>'


def _tables(evaluation: Evaluation, inside: Inside | None) -> str:
    """Figures by attack, the images judged worst, false alarms, benign changes and other images, layers of no use."""
    parts = [_attacks(evaluation)] if evaluation.auroc else []
    if inside is not None and inside.gallery is not None:
        named = (
            (
                "Missed most",
                inside.gallery.missed,
                "Attacked images that fool the classifier and look least suspicious.",
            ),
            (
                "Worst false alarms",
                inside.gallery.alarms,
                "Clean images that look most suspicious.",
            ),
        )
        parts += [_grid(title, shown, caption, inside.class_names) for title, shown, caption in named if shown]
    alarms = [
        (
            f"{level}: {share:.0%}",
            *(_share(evaluation.detector_clean_flag_rate[one].get(level)) for one in evaluation.scorers),
        )
        for level, share in evaluation.target_flag_rate.items()
    ]
    parts.append(
        _part(
            "False alarms",
            "The share of clean images that each score flags, by level and what it promises.",
            _table(("level", *evaluation.scorers), alarms, evaluation.baselines),
        )
    )
    others = {**evaluation.controls, **evaluation.out_of_distribution}
    if others:
        levels = list(evaluation.target_flag_rate)
        rows = [
            (
                in_words(name),
                f"{one.images:,}",
                "" if one.accuracy is None else f"{one.accuracy:.1%}",
                *(_share(one.flag_rate.get(FUSED, {}).get(level)) for level in levels),
            )
            for name, one in others.items()
        ]
        parts.append(
            _part(
                "Changes that are no attack, and other images",
                "The share that the fused score flags, of the images that the classifier still gets right.",
                _table(("images", "count", "right", *levels), rows, ()),
            )
        )
    doubts = [
        (in_words(detector), layer, why)
        for detector, layers in evaluation.doubts.items()
        for layer, why in layers.items()
    ]
    if doubts:
        parts.append(
            _part(
                "Layers of no use",
                "Their detector was fitted with them and reads them, yet they tell nothing: take them out of the "
                "config, or mend what is said of them.",
                _table(("detector", "layer", "why"), doubts, ()),
            )
        )
    splits = ", ".join(f"{name} {count:,}" for name, count in evaluation.splits.items())
    if splits:
        parts.append(_part("Images", f"How many each split has: {splits}.", ""))
    return "\n".join(parts)


def _grid(title: str, shown: Sequence[Shown], caption: str, class_names: Sequence[str]) -> str:
    """Images with all their readings."""
    cells = []
    for one in shown:
        label, predicted = class_names[one.label], class_names[one.predicted]
        answer = label if label == predicted else f"{label}, taken for {predicted}"
        readings = "".join(f"<br>{escape(in_words(name))} {p:.2g}" for name, p in one.p_values.items())
        cells.append(
            f'<figure><img src="data:image/png;base64,{escape(one.image)}" alt="{escape(answer)}" width="96">'
            f"<figcaption>{escape(in_words(one.of))}: {escape(answer)}<small>{readings}</small></figcaption></figure>"
        )
    numbers = "Small print: the share of clean images that are as suspicious, by all detectors and by each."
    return (
        f'<section><h2>{escape(title)}</h2><div class="grid">{"".join(cells)}</div>'
        f'<p class="faint">{escape(caption)} {numbers}</p></section>'
    )


def _attacks(evaluation: Evaluation) -> str:
    tables: list[str] = []
    for figure in FIGURES:
        values = getattr(evaluation, figure)
        bounds = evaluation.intervals.get(SPELLED.get(figure, figure), {})
        rows = []
        for attack, about in evaluation.attacks.items():
            row, of_attack = values.get(attack, {}), bounds.get(attack, {})
            best = max(row.values(), default=None)
            cells = [
                (
                    f"{'<b class=best>' if row[one] == best else ''}{row[one]:.3f}{'</b>' if row[one] == best else ''}"
                    + (f"<small>{of_attack[one][0]:.3f} to {of_attack[one][1]:.3f}</small>" if one in of_attack else "")
                    if one in row
                    else NONE
                )
                for one in evaluation.scorers
            ]
            name = escape(in_words(attack)) + (" (seen)" if about.seen else "")
            rows.append((name, f"{about.successful} of {about.attempted}", *cells))
        hidden = " hidden" if tables else ""
        content = _table(("attack", "successful", *evaluation.scorers), rows, evaluation.baselines, escaped=True)
        tables.append(f'<div class="wide" tabindex="0" data-name="{figure}"{hidden}>{content}</div>')
    choice = _select("figure", "attacks", FIGURES.items())
    return (
        f'<section><h2>Figures by attack</h2>{choice}<div id="attacks">{"".join(tables)}</div>'
        '<p class="faint">Attacked images count when the classifier got the clean image right and the attacked one '
        "wrong. Negatives are all clean images of the evaluation split. Small print: 95% bootstrap intervals. Seen: "
        "the fused score has learned from such attacks.</p></section>"
    )


def _part(title: str, caption: str, content: str) -> str:
    wide = f'<div class="wide" tabindex="0">{content}</div>' if content else ""
    return f'<section><h2>{escape(title)}</h2>{wide}<p class="faint">{escape(caption)}</p></section>'


def _table(
    head: Sequence[str], rows: Iterable[Sequence[str]], baselines: Sequence[str], *, escaped: bool = False
) -> str:
    heads = "".join(
        f'<th scope="col"{" class=baseline" if name in baselines else ""}>{escape(in_words(name))}</th>'
        for name in head
    )
    lines = "".join(
        "<tr>" + "".join(f"<td>{cell if escaped else escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"
