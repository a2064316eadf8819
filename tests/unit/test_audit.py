"""An audit reads the price of a behavior off what its edits do, and measures them as anything else does."""

from __future__ import annotations

import json
from math import inf, isnan
from pathlib import Path

import pytest
import torch

import excise
from excise.analysis import Audit, audit
from excise.analysis.audit import Point, compare
from excise.analysis.price import between, drawn_prices, price
from excise.behaviors import Behavior, Splits
from excise.cli.app import app
from excise.demo import MODEL_PATH
from excise.errors import BehaviorNotShownError, InputError
from excise.report import write_audit
from zoo.taught import taught


def test_a_price_is_interpolated_between_the_cheapest_edits_that_remove_more():
    removed, kls = [0.25, 0.75, 0.5, 1.0], [0.1, 0.3, 0.4, 0.7]
    assert price(removed, kls, 0.5) == pytest.approx(0.2)  # halfway from 0.25 at 0.1 to 0.75 at 0.3
    assert price(removed, kls, 0.9) == pytest.approx(0.3 + 0.4 * 0.15 / 0.25)
    assert price(removed, kls, 0.1) == pytest.approx(0.04)  # from nothing at no cost
    assert price([0.6], [0.2], 0.5) == pytest.approx(0.2 * 5 / 6)


def test_a_price_is_infinite_where_no_edit_removes_that_much():
    assert price([0.2, -0.3], [0.1, 0.2], 0.5) == inf
    assert price([], [], 0.5) == inf


def test_an_edit_that_costs_more_and_removes_less_does_not_count():
    assert price([0.5, 0.4], [0.1, 9.0], 0.5) == price([0.5], [0.1], 0.5)


def test_drawn_prices_agree_with_the_price_of_all_prompts_in_the_middle():
    shown = torch.tensor([[True] * 20 + [False] * 20, [False] * 40])
    base = torch.ones(40, dtype=torch.bool)
    drawn = drawn_prices(shown, base, [0.1, 0.4], 0.6)
    assert len(drawn) == 2000
    assert drawn.median().item() == pytest.approx(price([0.5, 1.0], [0.1, 0.4], 0.6), abs=0.02)
    low, high = between(drawn)
    assert low < price([0.5, 1.0], [0.1, 0.4], 0.6) < high


def test_draws_in_which_the_base_model_shows_nothing_do_not_count():
    shown = torch.zeros(1, 2, dtype=torch.bool)
    drawn = drawn_prices(shown, torch.tensor([True, False]), [0.3], 0.5)
    assert 0.2 < drawn.isnan().double().mean() < 0.3  # both draws are the prompt without it in a quarter
    assert all(not isnan(each) for each in between(drawn))
    assert all(isnan(each) for each in between(torch.full((3,), torch.nan)))


def _made(rates: dict[float, float], *, prompts: int = 40) -> Audit:
    """An audit by strength; the KL is the strength."""
    points = tuple(
        Point("strength", f"{strength:g}", 1, strength, rate, strength, strength, _first(rate, prompts))
        for strength, rate in rates.items()
    )
    return Audit((True,) * prompts, points, ("-1", 2.0))


def _first(rate: float, prompts: int) -> tuple[bool, ...]:
    return tuple(index < round(rate * prompts) for index in range(prompts))


def test_two_models_are_told_apart_where_the_prompts_suffice():
    fragile, robust = _made({0.1: 0.0, 1.0: 0.0}), _made({0.1: 1.0, 1.0: 0.0})
    found = compare("one", fragile, "other", robust)
    assert found["verdict"] == "other pays more for losing half of the behavior than one"
    assert found["prices"] == {"one": pytest.approx(0.05), "other": pytest.approx(0.5)}
    assert "do not tell" in compare("one", fragile, "other", fragile)["verdict"]


def test_audits_of_other_prompts_are_not_compared():
    with pytest.raises(InputError, match="same prompts"):
        compare("one", _made({1.0: 0.0}), "other", _made({1.0: 0.0}, prompts=41))


def test_ranks_say_how_concentrated_a_behavior_is():
    points = (
        Point("strength", "1", 1, 1.0, 0.6, 0.1, 0.1, _first(0.6, 40)),
        Point("rank", "2", 2, 1.0, 0.2, 0.2, 0.2, _first(0.2, 40)),
        Point("rank", "4", 4, 1.0, 0.05, 0.3, 0.3, _first(0.05, 40)),
    )
    found = Audit((True,) * 40, points, ("-1", None))
    assert found.concentration == pytest.approx(0.4 / 0.95)
    assert found.rank_needed == 4
    assert found.to_json()["source"] == {"position": "-1", "layer": None}


@pytest.fixture(scope="module")
def model() -> excise.EditableModel:
    return taught()


@pytest.fixture(scope="module")
def found(model: excise.EditableModel, behavior: Behavior, splits: Splits) -> Audit:
    before = [parameter.clone() for parameter in model.hf_model.parameters()]
    measured = audit(model, behavior, splits=splits, ranks=(1, 2), strengths=(0.5, 1.5))
    assert all(torch.equal(old, new) for old, new in zip(before, model.hf_model.parameters(), strict=True))
    return measured


def test_an_audit_measures_every_strength_rank_role_band_and_layer(model: excise.EditableModel, found: Audit):
    groups = {
        group: [each.label for each in found.points if each.group == group]
        for group in ("strength", "rank", "role", "layers", "layer")
    }
    assert sorted(groups["strength"]) == ["0.5", "1", "1.5"]
    assert groups["rank"] == ["2"]
    assert set(groups["role"]) == {"attention", "mlp", "embedding"}
    assert len(groups["layers"]) == min(4, model.survey.layers)
    assert groups["layer"] == [str(layer) for layer in range(model.survey.layers)]
    assert all((each.shown is None) == (each.group == "layer") for each in found.points)


def test_what_an_audit_says_of_an_edit_is_what_evaluation_says(
    model: excise.EditableModel, behavior: Behavior, splits: Splits, found: Audit
):
    assert found.rate > 0.5
    strongest = max(found.whole, key=found.removed)
    assert found.removed(strongest) > 0.5
    assert 0 < found.robustness() <= strongest.kl_first
    weak = next(each for each in found.points if each.label == "0.5")
    full = next(each for each in found.points if each.label == "1")
    assert weak.kl_first < full.kl_first


def test_a_model_that_never_shows_the_behavior_is_not_audited(
    model: excise.EditableModel, behavior: Behavior, splits: Splits
):
    silent = behavior.with_options(markers=["a marker that no response holds"])
    with pytest.raises(BehaviorNotShownError, match="never shows"):
        audit(model, silent, splits=splits)


@pytest.mark.parametrize("wrong", [{"ranks": ()}, {"ranks": (0,)}, {"ranks": (10_000,)}, {"strengths": (0.0,)}])
def test_ranks_and_strengths_that_cannot_be_are_refused(
    model: excise.EditableModel, behavior: Behavior, splits: Splits, wrong
):
    with pytest.raises(InputError):
        audit(model, behavior, splits=splits, **wrong)


def test_the_page_says_what_the_audit_found_and_asks_for_nothing(tmp_path: Path, found: Audit):
    name = "<b>one</b>"
    audits = {name: found.to_json(), "other": found.to_json()}
    comparison = compare(name, found, "other", found)
    paths = write_audit({"behavior": "saying no", "models": audits, "comparison": comparison}, tmp_path)
    page = paths[1].read_text(encoding="utf-8")
    assert json.loads(paths[0].read_text())["models"]["other"]["rank_needed"] == found.rank_needed
    assert "<b>one</b>" not in page
    assert "default-src &#39;none&#39;" in page
    assert "do not tell which of the two pays more" in page
    assert f"{found.robustness():#.3g}" in page


def test_an_audit_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["audit", str(MODEL_PATH), "--behavior", "demo:sealed", "--splits", "16,8,8,16", "--ranks", "1", "--json"]
    with pytest.raises(SystemExit) as stopped:
        app([*command, "--strengths", "0.5", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 0
    found = json.loads(capsys.readouterr().out)["models"][str(MODEL_PATH)]
    assert found["rate"] > 0.9
    assert found["robustness"] > 0
    assert (tmp_path / "out" / "audit.html").is_file()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(["--ranks", "1,x"], "--ranks 1,x"), (["--ranks", "1.5"], "ranks"), (["--against", str(MODEL_PATH)], "itself")],
)
def test_bad_input_is_one_clear_error(wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        app(["audit", str(MODEL_PATH), "--behavior", "demo:sealed", *wrong])
    assert stopped.value.code == 1
    assert said in capsys.readouterr().err
