"""The figures: what is drawn, from which numbers."""

import pytest

from excise.report import figures, layer_figures
from excise.report.palette import light
from excise.report.parameters import parameters_in_words
from excise.report.record import Record
from fake_result import fake_result


def traces(figure) -> dict[str, dict]:
    return {trace["name"]: trace for trace in figure.plot["data"]}


def point(rate: float, kl: float, **more) -> dict:
    return {"rate": rate, "kl_first": kl, **more}


def test_front_is_joined_and_the_chosen_edit_is_marked():
    result = fake_result()
    figure = figures.pareto(Record(result))
    drawn = traces(figure)
    assert len(drawn["front"]["x"]) == len(result["front"])
    assert drawn["front"]["x"] == sorted(drawn["front"]["x"])
    assert drawn["chosen edit"]["y"] == [item["rate"] for item in result["front"] if item["chosen"]]
    assert "attention strength" in drawn["front"]["hovertemplate"][0]
    assert "Sequence KL" in figure.plot["layout"]["xaxis"]["title"]["text"]
    dots = len(drawn["trial"]["x"]) + len(drawn["screened only"]["x"])
    assert dots == len(result["search"]["points"]) - len(result["front"])
    assert any("(chosen)" in row[0] for row in figure.table.rows)


def test_zero_kl_has_a_place_on_the_log_axis():
    front = [point(0.9, 0.0), point(0.1, 0.01), point(0.0, 0.2)]
    figure = figures.pareto(Record({"front": front}))
    axis = figure.plot["layout"]["xaxis"]
    assert axis["type"] == "log"
    assert all(x > 0 for x in traces(figure)["front"]["x"])
    assert axis["ticktext"][0] == "0"
    assert 10 ** axis["range"][0] < axis["tickvals"][0] < 0.01
    assert "KL 0<" in traces(figure)["front"]["hovertemplate"][0]


def test_a_narrow_range_of_kl_still_has_ticks():
    figure = figures.pareto(Record({"front": [point(0.3, 0.031), point(0.2, 0.034)]}))
    assert len(figure.plot["layout"]["xaxis"]["tickvals"]) >= 1


@pytest.mark.parametrize(
    ("front", "file", "chosen"),
    [
        ([point(0.1, 0.1, edit="edits/1.safetensors")], "runs/x/edits/1.safetensors", True),
        ([point(0.1, 0.1, edit="edits\\1.safetensors")], "edits/1.safetensors", True),
        ([point(0.1, 0.1, chosen=True)], None, True),
        ([point(0.1, 0.1, edit="edits/1.safetensors")], "edits/2.safetensors", False),
        ([point(0.1, 0.1)], "edits/2.safetensors", False),
    ],
)
def test_which_point_is_the_chosen_one(front, file, chosen):
    drawn = traces(figures.pareto(Record({"front": front, "edit": {"file": file}})))
    assert ("chosen edit" in drawn) is chosen


def test_points_without_numbers_are_left_out():
    result = {"front": [point(0.1, 0.1)], "search": {"points": [point(0.5, None), point(None, 0.5), point(0.6, 0.3)]}}
    assert len(traces(figures.pareto(Record(result)))["trial"]["x"]) == 1
    assert figures.pareto(Record({"front": [point(None, None)]})) is None


def test_strengths_by_layer_and_role():
    result = {
        "edit": {
            "sites": [
                {"parameter": "a.0", "layer": 0, "role": "attention", "strength": 1.0},
                {"parameter": "e.0", "layer": 1, "role": "expert", "strength": 0.4},
                {"parameter": "e.1", "layer": 1, "role": "expert", "strength": 0.8},
                {"parameter": "emb", "layer": -1, "role": "embedding", "strength": 0.5},
            ]
        },
        "survey": {"writers": [{"parameter": "a.1", "layer": 1, "role": "attention"}]},
    }
    figure = layer_figures.strengths(Record(result))
    drawn = traces(figure)
    assert list(drawn) == ["embedding", "attention", "expert"]
    assert drawn["attention"]["x"] == [0, 1]
    assert drawn["attention"]["y"] == [1.0, 0.0]  # a writer that the edit leaves out
    assert drawn["expert"]["y"] == [pytest.approx(0.6)]
    assert drawn["attention"]["marker"]["color"] == light("attention")
    assert figure.plot["layout"]["xaxis"]["ticktext"][0] == "emb."
    assert figure.table.rows[0][0] == "embedding"


def site(parameter: str, layer: int, role: str, **more) -> dict:
    return {"parameter": parameter, "layer": layer, "role": role, "kind": "low-rank", "strength": None, **more}


def test_sizes_of_low_rank_changes_by_layer_and_role():
    result = {
        "edit": {
            "sites": [
                site("a.0", 0, "attention", change=0.02),
                site("e.0", 1, "expert", change=0.01),
                site("e.1", 1, "expert", change=0.05, kind="projection", strength=1.0),
                site("e.2", 1, "expert", change=None),
            ]
        },
        "survey": {"writers": [{"parameter": "a.1", "layer": 1, "role": "attention"}]},
    }
    figure = layer_figures.strengths(Record(result))
    drawn = traces(figure)
    assert figure.name == "strengths"
    assert drawn["attention"]["y"] == [0.02, 0.0]
    assert drawn["expert"]["y"] == [pytest.approx(0.03)]
    assert "1.00% to 5.00%" in drawn["expert"]["hovertemplate"][0]
    axis = figure.plot["layout"]["yaxis"]
    assert axis["title"]["text"] == "‖ΔW‖ / ‖W‖"
    assert axis["tickformat"].endswith("%")
    assert figure.table.rows == (("0", "2.00%", "–"), ("1", "0.00%", "3.00%"))
    assert "not drawn: 1 weight, packed" in figure.caption
    assert "strength" not in (figure.title + figure.alt).lower()
    assert "expert up to 3.00%" in figure.alt


def test_low_rank_changes_of_weights_that_cannot_be_read_are_not_drawn():
    result = Record({"edit": {"sites": [site("a.0", 0, "attention", change=None)]}})
    assert layer_figures.strengths(result) is None
    assert "quantised" in layer_figures.no_strengths(result)
    assert "not recorded" in layer_figures.no_strengths(Record({}))


def test_results_without_kinds_hold_projections():
    result = fake_result()
    for edited in result["edit"]["sites"]:
        del edited["kind"], edited["rank"], edited["change"]
    assert layer_figures.strengths(Record(result)) == layer_figures.strengths(Record(fake_result()))


def test_parameters_of_a_polish_are_in_words():
    result = fake_result(low_rank=True)
    figure = figures.pareto(Record(result))
    hovers = " ".join(traces(figure)["front"]["hovertemplate"])
    cells = " ".join(row[-1] for row in figure.table.rows)
    for text in (hovers, cells):
        assert "polished for" in text
        assert "mean-difference direction of layer 14 (last prompt token)" in text
        assert "of each layer (last prompt token)" in text
        assert "preserving weight 1.5" in text
        assert "reach" not in text


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (
            {"kind": "closed form", "position": "response", "method": "projected", "reach": "one", "source": 3.5,
             "strength": 1.0},
            "closed form, projected direction of layer 3.5 (mean over the response)",
        ),
        (
            {"kind": "polish", "step": 1, "preserve": 0.3, "new_thing": 0.12345},
            "polished for 1 step, direction, preserving weight 0.3, new thing 0.123",
        ),
        (
            {"kind": "between", "along": 1.4, "strength": 1.25},
            "polish, 40% of the way from phase 1 to phase 2, direction, strength 1.25",
        ),
        (
            {"kind": "between", "along": 0.5, "strength": 0.8, "reach": "per-layer"},
            "polish, 50% of the way from the closed form to phase 1, direction of each layer, strength 0.8",
        ),
        ({"kind": "between", "along": 2.0, "strength": 1.0}, "polish, phase 2, direction"),
        ({"kind": "between", "along": 0.0, "strength": 1.5}, "closed form, direction, strength 1.5"),
        ({"kind": "between"}, "between phases of the polish, direction"),
        ({"attention strength": 0.5, "norm": "none"}, "attention strength 0.5, norm none"),
        ({"kind": "another", "step": 3}, "kind another, step 3"),
        ({}, ""),
    ],
)  # fmt: skip
def test_parameters_in_words(parameters, words):
    assert ", ".join(parameters_in_words(Record(parameters))) == words


def test_deep_models_get_lines_and_few_ticks():
    figure = layer_figures.strengths(Record(fake_result(layers=80)))
    assert {trace["type"] for trace in figure.plot["data"]} == {"scatter"}
    assert len(figure.plot["layout"]["xaxis"]["tickvals"]) <= 13


def test_separability_has_one_line_per_position_and_measure():
    result = fake_result(layers=6)
    figure = layer_figures.separability(Record(result))
    assert len(figure.plot["data"]) == 8
    assert sum(trace.get("showlegend", True) for trace in figure.plot["data"]) == 4
    assert "best: layer 3" in str(figure.plot["layout"]["annotations"])
    assert len(figure.table.rows) == 24


def test_cosines_need_a_square_matrix():
    assert layer_figures.cosines(Record(fake_result(layers=6))).plot["data"][0]["zmin"] == -1
    for cosine in ([[1.0, 0.5]], [[1.0, None], [0.5, 1.0]], [], None, [[[1.0]]]):
        assert layer_figures.cosines(Record({"directions": {"cosine": cosine}})) is None


@pytest.mark.parametrize("name", ["<a href='https://example.com'>x</a>", "<b>bold</b>"])
def test_names_cannot_be_markup_in_a_figure(name):
    site = {"parameter": "p", "layer": 0, "role": name, "strength": 1.0}
    figure = layer_figures.strengths(Record({"edit": {"sites": [site]}}))
    assert "<" not in figure.plot["data"][0]["name"]
    drawn = figures.pareto(Record({"front": [point(0.1, 0.1, parameters={name: name})]}))
    assert name not in drawn.plot["data"][0]["hovertemplate"][0]
