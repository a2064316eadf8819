"""The HTML report: what it says, what it never holds, and that nothing missing or hostile breaks it."""

import copy
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from excise.report import html, write_report
from excise.report.palette import COLOURS, dark_partners
from excise.report.record import Record
from fake_result import fake_result

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Visible text, elements and attributes of a page; complains about elements that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.text += data + " "

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(autouse=True)
def small_plotly(monkeypatch):
    """The drawing library is megabytes: a stand-in, except where the whole file is asked for."""
    monkeypatch.setattr(html, "get_plotlyjs", lambda: "/* plotly */")


def page(result: dict[str, Any]) -> Page:
    return Page(html.render(Record(result)))


def test_headline_numbers_are_there():
    text = page(fake_result()).text
    for expected in ("98% → 2%", "98% (93.0–99.5%)", "2% (0.5–7.0%)", "0.0104", "2.1e-07", "3.1e-04", "100%", "9 / 9"):
        assert expected in text, expected
    assert "all checks passed" in text
    assert "13 of 13 writers" in text


def test_all_parts_are_there():
    shown = page(fake_result(demo=True))
    for expected in (
        "Right answers to sealed questions",
        "+93.0 points",
        "−1.0 points",
        "A random direction, same strengths",
        "untouched tensors",
        "model.layers.*.self_attn.o_proj.weight",
        "0–5",
        "1 min 36 s",
        "excise demo --out runs/demo-sealed",
        "first response token",
        "0.314",
        "Shown on ordinary prompts not measured 0% (0.0–3.7%)",
        "Chosen: the smallest sequence KL at a rate of at most 0.01.",
        "markers 98% 2% −96.0 (−99.0 to −91.0) points 96 / 0 <0.0001",
        "100 prompts cannot tell a rate of 2.0 % from 6.2 %.",
        "Report split read once.",
        "30 tokens 95%",
        "tokens 50 to 99 3 1",
        "Delayed: first after token 50 3 1",
        "seed 1 32 and 32 94% (79.9–98.3%) 0.0287",
    ):
        assert expected in shown.text, expected
    digest = fake_result()["prompts"]["fit"]
    assert digest in shown.text
    figures = [attributes for attributes in shown.named("div") if "data-figure" in attributes]
    assert [figure["data-figure"] for figure in figures] == [
        "figure-pareto",
        "figure-strengths",
        "figure-separability",
        "figure-cosines",
    ]
    assert all(figure["role"] == "img" and len(figure["aria-label"] or "") > 40 for figure in figures)
    assert len(shown.named("details")) == 4  # a table beside every figure
    assert len(shown.named("caption")) == len(shown.named("table"))


def test_a_low_rank_edit_is_described_as_one():
    text = page(fake_result(low_rank=True)).text
    for expected in (
        "How much each layer is changed",
        "‖ΔW‖ / ‖W‖",
        "6.10%",
        "A random direction, same size and tokens",
        "a conditional form of directional ablation",
        "low-rank changes (rank 1) of",
        "Search method polish",
        "polished for",
        "to find the directions and to fit the changes",
    ):
        assert expected in text, expected
    for absent in ("How strongly each layer is edited", "same strengths", "Norm mode"):
        assert absent not in text, absent
    assert "How strongly each layer is edited" in page(fake_result()).text


def test_sizes_that_are_not_known_are_said_to_be():
    result = fake_result(low_rank=True)
    for site in result["edit"]["sites"]:
        site["change"] = None
    shown = page(result)
    assert "the weights are packed (quantised) or offloaded" in shown.text
    assert "figure-strengths" not in [attributes.get("data-figure") for attributes in shown.named("div")]


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("key", sorted(fake_result()))
@pytest.mark.parametrize("value", ["missing", None])
def test_every_key_may_be_missing_or_null(key, value, low_rank):
    result = fake_result(low_rank=low_rank)
    if value is None:
        result[key] = None
    else:
        del result[key]
    assert "Run it again" in page(result).text


def test_an_empty_result_says_so_in_words():
    text = page({}).text
    for expected in (
        "Not both rates were measured",
        "not measured",
        "Not recorded",
        "were not run",
        "was not recorded",
    ):
        assert expected in text, expected
    assert "pass" not in re.findall(r"\w+", text)


JUNK = st.sampled_from(
    [None, "", "x", "<b>", -1, 0, 1e308, 1e-320, math.nan, math.inf, 10**400, True, [], [1], [None, 2], {}, {"a": []}]
)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_no_value_of_the_wrong_kind_breaks_it(data):
    result = fake_result(layers=2, trials=6, low_rank=data.draw(st.booleans()))
    for _ in range(data.draw(st.integers(1, 4))):
        place: Any = result
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            inner = place[key]
            if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
                place[key] = copy.deepcopy(data.draw(JUNK))
                break
            place = inner
    json.dumps(result)
    page(result)


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}"


def hostile(value: Any) -> Any:
    """Every string of a result, and every key that is free, with an attack appended."""
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, list):
        return [hostile(item) for item in value]
    if isinstance(value, dict):
        free = {"parameters", "labels", "versions", "stages", "prompts", "demo"}
        return {
            key: {name + HOSTILE: hostile(inner) for name, inner in item.items()}
            if key in free and isinstance(item, dict)
            else hostile(item)
            for key, item in value.items()
        }
    return value


@pytest.mark.parametrize("low_rank", [False, True])
def test_nothing_in_the_result_becomes_markup_or_code(low_rank):
    plain, attacked = (page(change(fake_result(low_rank=low_rank))) for change in (dict, hostile))
    assert [tag for tag, _ in attacked.elements if tag in ("img", "script")] == ["script"] * len(plain.scripts)
    assert not any(name.startswith("on") for _, attributes in attacked.elements for name in attributes)
    assert "alert(1)" in attacked.text  # shown, as text
    assert "{{7*7}}" in attacked.text
    for script in attacked.scripts:
        assert "</script" not in script.lower()
    for plot in attacked.scripts[1:-2]:
        assert "<script>" not in json.dumps([trace.get("name") for trace in json.loads(plot)["data"]])


def test_nothing_is_fetched_and_only_links_point_out(monkeypatch):
    monkeypatch.undo()
    text = html.render(Record(fake_result()))
    shown = Page(text)
    for tag, attributes in shown.elements:
        for name in ("src", "href", "data", "poster", "srcset", "action", "background"):
            if attributes.get(name):
                assert (tag, name) == ("a", "href")
    assert not shown.named("link")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert sum(len(script) > 1_000_000 for script in shown.scripts) == 1  # plotly, once
    policy = next(meta["content"] for meta in shown.named("meta") if "http-equiv" in meta)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "'unsafe-inline'" not in policy.split("style-src")[0]
    assert "http" not in policy


def test_prompts_and_responses_never_get_in():
    result = fake_result()
    result["after"]["responses"] = [{"prompt": "SECRET PROMPT", "text": "SECRET ANSWER"}]
    result["before"]["responses"] = ["SECRET ANSWER"]
    result["prompts"] = {"report": ["SECRET PROMPT"], "tune": "SECRET PROMPT", "fit": {"target": "SECRET PROMPT"}}
    result["config"] = {"system": "SECRET PROMPT", "marker": ["SECRET"]}
    assert "SECRET" not in html.render(Record(result))


def test_thinking_is_shown_where_it_was_measured():
    result = fake_result()
    assert "With thinking" not in page(result).text
    result["thinking"] = {key: copy.deepcopy(result[key]) for key in ("before", "after", "comparison")}
    result["thinking"]["after"]["unfinished_thinking"] = 7
    text = page(result).text
    assert "With thinking" in text
    assert "No answer: never stopped thinking – 7" in text


def test_a_missed_goal_is_called_a_miss():
    result = fake_result()
    result["goals"] = {"max_rate": 0.01, "max_kl": 0.02}
    result["verify"] = {"passed": False, "checks": [{"name": "finite", "passed": False, "detail": "lm_head: NaN"}]}
    text = page(result).text
    assert "2 points missed" in text
    assert "Goal: at most 1%" in text
    assert "Goal: at most 0.0200" in text
    assert "0 / 1" in text
    assert "lm_head: NaN" in text


def test_overlapping_intervals_are_no_success():
    result = fake_result()
    result["after"] |= {"rate": 0.9, "rate_interval": [0.82, 0.95]}
    assert "1 point missed" in page(result).text


def test_warnings_and_omissions_are_listed():
    result = fake_result() | {"warnings": ["no system role"], "skipped": ["leak of the baked model"]}
    result["survey"]["unresolved"] = [{"layer": 3, "parameters": ["a.gate"], "reason": "multiplied"}]
    text = page(result).text
    assert "Warning: no system role" in text
    assert "Left out: leak of the baked model" in text
    assert "a.gate 3 multiplied" in text
    assert "the run gave no warning" not in text


def luminance(colour: str) -> float:
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_have_contrast(theme):
    colour = {purpose: pair[theme] for purpose, pair in COLOURS.items()}
    for text in ("ink", "muted", "accent", "pass", "miss", "before"):
        for ground in ("paper", "card"):
            assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
    for status in ("pass", "miss", "open"):
        assert contrast(colour[status], colour[f"{status}-soft"]) >= 4.5, status
    for role in ("attention", "mlp", "expert", "mixer", "embedding"):
        assert contrast(colour[role], colour["card"]) >= 3, role


def test_each_light_colour_has_one_dark_partner():
    assert len(dark_partners()) == len(COLOURS)


def test_files_are_written_whole_and_replaced(tmp_path):
    written = write_report(fake_result(), tmp_path / "run")
    assert written == (tmp_path / "run" / "report.html", tmp_path / "run" / "README.md")
    first = written[0].read_bytes()
    assert write_report(fake_result(), tmp_path / "run") == written
    assert written[0].read_bytes() == first  # nothing depends on the time or the machine
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["README.md", "report.html"]
