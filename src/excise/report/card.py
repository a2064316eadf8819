"""`README.md`: the model card of the baked model, with the Hugging Face Hub's front matter."""

from __future__ import annotations

import json
import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from excise.report import headline, paired, proof, scores, subject, technique
from excise.report.record import Record
from excise.report.table import Table

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~$!])")
_PATH = re.compile(r"(?<![\w:/.])(?:~|\.{1,2}|[A-Za-z]:)?[/\\](?:[^\s/\\'\"]+[/\\])+")
_PRIVATE = {"Model", "Behavior", "Edit file"}  # may hold paths of the machine the run was made on


def render(result: Record) -> str:
    """The card for a result. The base model's licence stays what it is; paths of this machine are not in the card."""
    return _template().render(
        front_matter=front_matter(result),
        model=subject.model_name(result),
        behavior=subject.behavior_name(result),
        lead=headline.lead(result),
        strengthened=subject.strengthens(result),
        technique=technique.technique(result),
        tables=[
            scores.rates(result),
            paired.differences(result.record("comparison")),
            paired.kept(result.record("comparison")),
            *paired.strata({"Before": result.record("before"), "After": result.record("after")}),
            scores.truth(result),
            scores.distance(result),
            scores.controls(result),
        ],
        notes=paired.notes(result),
        agreement=scores.agreement(result),
        proofs=headline.headlines(result)[2:],
        checks=proof.checks(result),
        warnings=[public(text) for text in result.texts("warnings")],
        skipped=[public(text) for text in result.texts("skipped")],
        nothing_left_out=subject.nothing_left_out(result),
        licence=result.text("license"),
        command=public(subject.command(result)),
        settings=[pair for pair in proof.settings(result) if pair[0] not in _PRIVATE],
        versions=proof.versions(result),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("excise.report", "assets"), autoescape=False, undefined=StrictUndefined
    )  # Markdown: its own escaping, by the filters
    environment.filters.update({"md": escape, "md_code": code, "md_table": table})
    return environment.get_template("card.md.j2")


def front_matter(result: Record) -> str:
    """The card's YAML. `base_model` only where the base is on the Hub, `license` only where the base's is known."""
    lines = ["library_name: transformers", "pipeline_tag: text-generation"]
    base = subject.hub_id(result)
    if base is not None:
        lines += [f"base_model: {_yaml(base)}", "base_model_relation: finetune"]
    if (licence := result.text("license")) is not None:
        lines.append(f"license: {_yaml(licence)}")
    lines += ["tags:", "- excise"]
    lines += [] if subject.strengthens(result) else ["- directional-ablation", "- abliterated"]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split())).replace("&", "&amp;")


def public(text: str) -> str:
    """Text with absolute and home paths cut down to their last part: the card is made to be published."""
    return _PATH.sub("", text)


def code(text: str) -> str:
    """A fenced block whose fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{' '.join(text.split())}\n{fence}"


def table(content: Table) -> str:
    """A table as Markdown, with its caption above."""
    rule = [("---:" if index in content.numeric else "---") for index in range(len(content.headers))]
    rows = [[escape(str(cell)) for cell in row] for row in (content.headers, *content.rows)]
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]
    return "\n".join([f"{escape(content.caption)}:", "", *lines])


def _yaml(text: str) -> str:
    """A YAML scalar: JSON's strings are YAML's."""
    return json.dumps(text) if not re.fullmatch(r"[A-Za-z][\w./-]*", text) else text
