"""The default search on models that are not plain fp32: half precision, packed weights, offloaded weights."""

import copy
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload

import excise
from excise.behaviors import Behavior, SplitSizes
from excise.edit import LowRank
from excise.model import EditableModel
from excise.search import SearchResult, search
from zoo.letters import CHATML, letters
from zoo.packed import Packed
from zoo.taught import refusing, taught

SIZES = SplitSizes(fit=16, tune=8, select=8, report=8)


@pytest.fixture(scope="module")
def behavior(tmp_path_factory: pytest.TempPathFactory) -> Behavior:
    return refusing(tmp_path_factory.mktemp("prompts"))


def another() -> EditableModel:
    """A model of its own, taught the same."""
    return EditableModel(copy.deepcopy(taught().hf_model), letters(template=CHATML), name="taught")


def searched(model: EditableModel, behavior: Behavior) -> SearchResult:
    return search(model, behavior, splits=behavior.splits(SIZES), budget="quick", trials=7)


def removed(model: EditableModel, behavior: Behavior) -> SearchResult:
    found = searched(model, behavior)
    assert found.best.sites
    with model.edited(found.best):
        replies = [model.chat(prompt) for prompt in behavior.splits(SIZES).report.target]
    assert sum(reply == "no way" for reply in replies) <= 1
    assert model.chat("zig a1") == "no way"
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(behavior: Behavior, dtype: torch.dtype) -> None:
    model = another()
    model.hf_model.to(dtype)
    removed(model, behavior)


def test_packed_weights(behavior: Behavior) -> None:
    model = another()
    assert model.survey.writers
    for layer in model.layers:
        layer.mlp.down_proj = Packed(layer.mlp.down_proj.weight.data)
        layer.self_attn.o_proj = Packed(layer.self_attn.o_proj.weight.data)
    found = removed(model, behavior)
    assert all(isinstance(site.changes[0], LowRank) for site in found.best.sites)


def test_offloaded_weights(behavior: Behavior) -> None:
    model, plain = another(), another()
    assert model.survey.writers
    cpu_offload(model.hf_model.get_submodule("model.layers.1"), execution_device=torch.device("cpu"))
    one, other = removed(model, behavior), searched(plain, behavior)
    assert [trial.measured.rate for trial in one.history] == [trial.measured.rate for trial in other.history]


def test_the_result_does_not_depend_on_where_it_is_stored(behavior: Behavior, tmp_path: Path) -> None:
    model = another()
    kept = search(model, behavior, splits=behavior.splits(SIZES), budget="quick", trials=7, directory=tmp_path)
    free = searched(model, behavior)
    assert [trial.measured for trial in kept.history] == [trial.measured for trial in free.history]


def test_a_handful_of_fit_prompts_does_not_win_by_fitting_them(behavior: Behavior) -> None:
    """What is taken is chosen on prompts that the polish never saw."""
    model = another()
    splits = behavior.splits(SplitSizes(fit=3, tune=12, select=12, report=12))
    found = search(model, behavior, splits=splits, budget="quick")
    taken = next(point for point in found.front if point.edit is found.best)
    assert abs(taken.select.rate - taken.tune.rate) <= 0.35
    scores = excise.evaluate(model, behavior, edit=found.best, split="report", splits=splits)
    assert abs(scores.rate.value - taken.rate) <= 0.35
