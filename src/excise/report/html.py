"""`report.html`, and pages like it: one file that opens anywhere, offline, in light or dark, on paper.

Everything that comes from the result is escaped, and the page's content security policy names the two scripts that may
run by their hashes and allows no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from excise.report import figures, further, headline, layer_figures, paired, proof, scores, subject, technique
from excise.report.palette import COLOURS, dark_partners
from excise.report.record import Record


def render(result: Record) -> str:
    """The page for a result. Needs nothing but the result, and says in words what the result does not hold."""
    pictures = {
        "pareto": figures.pareto(result),
        "strengths": layer_figures.strengths(result),
        "separability": layer_figures.separability(result),
        "cosines": layer_figures.cosines(result),
    }
    return page(
        "report.html.j2",
        [each for each in pictures.values() if each is not None],
        **_words(result),
        **_tables(result),
        **pictures,
    )


def page(template: str, drawn: Sequence[figures.Figure], **content: object) -> str:
    """A page of this look: its template, the figures it draws, and what it says beside them."""
    plotly = get_plotlyjs().replace("\r", "") if drawn else ""
    script = _asset("report.js")
    return _template(template).render(
        **content,
        figures=drawn,
        policy=_policy(plotly, script if drawn else ""),
        style=_style(),
        palette=script_json(dark_partners()),
        plotly=Markup(plotly),
        script=Markup(script),
    )


def script_json(value: object) -> Markup:
    """JSON that can stand inside a script element whatever strings it holds."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


@cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("excise.report", "assets"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["script_json"] = script_json
    return environment.get_template(name)


def _words(result: Record) -> dict[str, object]:
    return {
        "model": subject.model_name(result),
        "behavior": subject.behavior_name(result),
        "lead": headline.lead(result),
        "strengthened": subject.strengthens(result),
        "tally": headline.tally(result),
        "headlines": headline.headlines(result),
        "meters": headline.meters(result),
        "created": subject.created(result),
        "clear": subject.left_out(result) == (),
        "nothing_left_out": subject.nothing_left_out(result),
        "warnings": result.texts("warnings"),
        "skipped": result.texts("skipped"),
        "no_strengths": layer_figures.no_strengths(result),
        "technique": technique.family(result),
        "command": subject.command(result),
        "excise_version": result.text("versions", "excise"),
        "agreement": scores.agreement(result),
        "notes": paired.notes(result),
        "settings": proof.settings(result),
        "versions": proof.versions(result),
        "digests": proof.digests(result),
    }


def _tables(result: Record) -> dict[str, object]:
    columns = {"Before": result.record("before"), "After": result.record("after")}
    thinking = {"Before": result.record("thinking", "before"), "After": result.record("thinking", "after")}
    return {
        "compared": paired.differences(result.record("comparison")),
        "kept": paired.kept(result.record("comparison")),
        "strata": paired.strata(columns),
        "further": [each for each in (further.numbers(columns), *further.agreement(columns)) if each is not None],
        "looks": paired.looks(columns),
        "onsets": paired.onsets(columns),
        "draws": paired.draws(result.record("controls", "random_direction")),
        "thinking": scores.rates(result.record("thinking")),
        "thinking_compared": paired.differences(result.record("thinking", "comparison")),
        "thinking_kept": paired.kept(result.record("thinking", "comparison")),
        "thinking_looks": paired.looks(thinking),
        "thinking_onsets": paired.onsets(thinking),
        "truth": scores.truth(result),
        "rates": scores.rates(result),
        "distance": scores.distance(result),
        "controls": scores.controls(result),
        "splits": scores.splits(result),
        "leaks": proof.leaks(result),
        "writers": proof.writers(result),
        "unresolved": proof.unresolved(result),
        "checks": proof.checks(result),
        "stages": proof.stages(result),
    }


def _asset(name: str) -> str:
    return files("excise.report").joinpath("assets", name).read_text(encoding="utf-8").replace("\r", "")


def _style() -> Markup:
    """The style sheet of every page."""
    return Markup(_colours() + _asset("report.css"))


def _colours() -> str:
    """The palette as CSS variables; paper is light."""
    light, dark = ("".join(f"--{purpose}:{pair[index]};" for purpose, pair in COLOURS.items()) for index in range(2))
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"


def _policy(*scripts: str) -> str:
    """No request to anywhere; only these scripts run."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
        if script
    )
    allowed = hashes or "'none'"
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
