"""The model card and the way numbers are written."""

import re

import pytest

from excise.report import card, formats, subject
from excise.report.record import Record
from fake_result import fake_result


def front_matter(text: str) -> str:
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert match
    return match[1]


def test_card_of_a_model_from_the_hub():
    text = card.render(Record(fake_result(demo=False)))
    head = front_matter(text)
    assert "base_model: Qwen/Qwen3-4B" in head
    assert "library_name: transformers" in head
    assert "license" not in head
    assert "The licence of the base model applies" in text
    for expected in ("98% (93.0–99.5%)", "0.0104", "2.1e-07", "untouched tensors", "from_pretrained", "2406.11717"):
        assert expected in text, expected


def technique(result) -> str:
    """The paragraph that says how the model was made, on one line."""
    return " ".join(card.render(Record(result)).split("This model was made with")[1].split("```")[0].split())


def test_the_card_says_what_projections_are():
    text = technique(fake_result())
    assert "by directional ablation ([Arditi et al., 2024](https://arxiv.org/abs/2406.11717)): directions that" in text
    assert "There was no training." in text
    assert "BA" not in text


def test_the_card_says_what_a_conditional_edit_is():
    result = fake_result(low_rank=True)
    for point in result["front"]:
        point["parameters"] |= {"kind": "polish", "step": 45}
    text = technique(result)
    assert "by a conditional form of directional ablation" in text
    assert f"{len(result['edit']['sites'])} weights that write to the residual stream, less is written" in text
    assert "W′ = W + BA (rank 1)" in text
    assert "trained for 45 gradient steps on responses of the model’s own" in text
    assert "no training" not in text
    assert "projected out" not in text
    assert "stock Transformers" in text
    whole = card.render(Record(result))
    assert "Search method: polish" in whole
    assert "Changes: low-rank changes (rank 1) of" in whole
    assert "Norm mode" not in whole
    assert "A random direction, same size and tokens" in whole


def test_the_card_of_a_closed_form_with_projections():
    result = fake_result(low_rank=True)
    result["edit"]["sites"][0] |= {"kind": "projection", "strength": 1.0}
    result["edit"]["sites"][1] |= {"rank": 2}
    for point in result["front"]:
        point["parameters"] |= {"kind": "closed form", "step": 0}
    text = technique(result)
    assert "(ranks 1–2)" in text
    assert "In 1 other weight the directions were projected out" in text
    assert "There was no training." in text
    assert "projections (rank 1) of 1 weight" in card.render(Record(result))


def test_the_card_claims_nothing_of_a_low_rank_edit_by_an_unknown_method():
    result = fake_result(low_rank=True)
    result["search"]["method"] = "another"
    for point in result["front"]:
        point["parameters"] = {"rank": 1}
    text = technique(result)
    assert "by a form of directional ablation" in text
    assert "conditional" not in text
    assert "training" not in text
    assert "silent" not in text


@pytest.mark.parametrize(("along", "trained"), [(1.4, True), (0.0, False)])
def test_the_card_of_an_edit_between_others(along, trained):
    result = fake_result(low_rank=True)
    for point in result["front"]:
        point["parameters"] = {"kind": "between", "along": along, "strength": 1.2}
    text = technique(result)
    assert ("trained by gradient descent on responses" in text) is trained
    assert ("There was no training." in text) is not trained


def test_the_card_does_not_guess_whether_there_was_training():
    result = fake_result(low_rank=True)
    for point in result["front"]:
        del point["parameters"]
    assert "train" not in technique(result)


def test_card_keeps_a_known_licence():
    text = card.render(Record(fake_result() | {"license": "apache-2.0"}))
    assert "license: apache-2.0" in front_matter(text)


@pytest.mark.parametrize("model", ["/home/someone/models/mine", "./mine", "~/x/mine", "C:\\models\\mine", "a/b/mine"])
def test_a_local_base_is_named_without_its_path(model):
    result = fake_result() | {"model": model, "command": f"excise run {model} --behavior /home/someone/b.toml"}
    result["warnings"] = ["the tokenizer in /home/someone/models/mine has no template"]
    text = card.render(Record(result))
    assert "base_model" not in front_matter(text)
    assert "# mine, without" in text
    assert "someone" not in text
    assert "C:" not in text


def test_the_command_names_the_search_method():
    result = fake_result(low_rank=True)
    del result["command"]
    assert subject.command(Record(result)).endswith("--seed 0 --budget standard --method polish")
    result["search_options"] = {"method": "polish", "time": "10m", "max_kl": 0.1}
    assert subject.command(Record(result)).endswith("--method polish --time 10m --max-kl 0.1")


def test_base_model_in_the_result_decides():
    assert subject.hub_id(Record({"model": "runs/mine", "base_model": None})) is None
    assert subject.hub_id(Record({"model": "/x/y", "base_model": "org/name"})) == "org/name"
    assert subject.hub_id(Record({"model": "org/name"})) == "org/name"
    assert subject.hub_id(Record({"model": "name"})) is None


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("key", sorted(fake_result()))
def test_card_without_a_key(key, low_rank):
    result = fake_result(low_rank=low_rank)
    del result[key]
    assert "## Limits" in card.render(Record(result))


def test_card_of_nothing():
    text = card.render(Record({}))
    assert "Nothing was measured" in text
    assert "Not recorded" in text


def test_names_cannot_break_the_card():
    name = 'x\n---\nlicense: mit\n# y | <script>alert(1)</script> [l](javascript:1) "'
    text = card.render(Record(fake_result() | {"model": name, "license": name, "warnings": [name]}))
    assert text.count("\n---\n") == 1
    assert "\nlicense: mit" not in text
    body = text.split("\n---\n", 1)[1]
    assert "<script>" not in body
    assert not re.search(r"(?<!\\)\]\(javascript", body)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see /home/me/x/model", "see model"),
        ("https://arxiv.org/abs/1", "https://arxiv.org/abs/1"),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B"),
        ("'/a b/c/d'", "'/a b/c/d'"),
        ("--out=../up/run", "--out=run"),
    ],
)
def test_public_text(text, shown):
    assert card.public(text) == shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0%"),
        (1.0, "100%"),
        (0.02, "2%"),
        (0.125, "12.5%"),
        (0.0001, "<0.1%"),
        (0.9999, ">99.9%"),
        (None, "not measured"),
    ],
)
def test_percent(value, text):
    assert formats.percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.0104, "0.0104"), (0.2, "0.200"), (1.012, "1.01"), (123.4, "123"), (1.5e-6, "1.50e-06")],
)
def test_significant(value, text):
    assert formats.significant(value) == text


def test_leak():
    assert formats.leak(2.14e-7) == "2.1e-07"
    assert formats.leak(0.0) == "0"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.9, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (96.4, "1 min 36 s"),
        (3599.7, "1 h 0 min"),
        (7260.0, "2 h 1 min"),
    ],
)
def test_duration(seconds, text):
    assert formats.duration(seconds) == text


def test_ranges_and_intervals():
    assert formats.ranges([3, 1, 2, 7, 9, 10]) == "1–3, 7, 9–10"
    assert formats.interval((0.0, 0.037)) == "0.0–3.7%"
    assert formats.interval((0.9, 1.0)) == "90–100%"
    assert formats.rate(0.5, None) == "50%"
