"""Rows of one batch that each have an edit of their own get what they get with that edit live alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from excise import Edit, EditableModel
from excise.behaviors import Behavior
from excise.edit import LowRank, Mask, SiteEdit
from excise.errors import EditMismatchError, SharedBatchError
from excise.evaluation import Onset, RateResult, Reference, behavior_rate, behavior_rate_many
from excise.model import generate as generation
from excise.model import row_layout
from excise.model.agreement import limit, logits_difference
from excise.model.forward import last_logits, pad_left
from excise.model.generate import Response, end_tokens, generate_from_tokens
from excise.model.population import favourable_count
from excise.model.row_groups import Population
from excise.model.row_layout import Layout, _in_order
from zoo import build as architectures
from zoo.letters import CHATML, letters
from zoo.tiny import build, random_tokens

VECTORS = torch.randn(4, 64, generator=torch.Generator().manual_seed(3))
ROWS = [[(97 * start + 13 * place) % 250 + 3 for place in range(start + 4)] for start in range(5)]
PROMPTS = ["Hello there", "What is it?", "A", "Tell me a long story about a fox", "two"]


def low_rank(model: EditableModel, rank: int, *, role: str = "attention") -> Edit:
    generator = torch.Generator().manual_seed(rank)
    sites = []
    for writer in model.survey.writers:
        if writer.role == role:
            shape = list(model.hf_model.get_parameter(writer.parameter).shape)
            del shape[writer.axis]
            left, right = (0.3 * torch.randn(size, generator=generator) for size in ((64, rank), (rank, *shape)))
            sites.append(SiteEdit(writer, (LowRank(left, right),)))
    return Edit(tuple(sites), model.identity)


def masked(model: EditableModel) -> Edit:
    """Some inputs of every attention output removed, and of one all turned round."""
    sites = []
    for writer in model.survey.writers:
        if writer.role == "attention":
            shape = list(model.hf_model.get_parameter(writer.parameter).shape)
            del shape[writer.axis]
            scale = -torch.ones(1) if writer.layer == 0 else (torch.arange(*shape) >= shape[0] // 3).float()
            sites.append(SiteEdit(writer, (Mask(scale),)))
    return Edit(tuple(sites), model.identity)


def mixed(model: EditableModel) -> list[Edit]:
    """Every kind of change, of different ranks and at different writers, and none at all."""
    project = Edit.project
    return [
        project(model.survey, VECTORS[:3], strength=0.8),
        project(model.survey, VECTORS[0], strength=1.2, norm="column", roles=["attention"]),
        Edit.empty(model.survey),
        low_rank(model, 2),
        project(model.survey, VECTORS[1], layers=[1, 2]) + project(model.survey, VECTORS[2], roles=["attention"]),
        project(model.survey, VECTORS[3], strength=-0.5, roles=["attention"], norm="column", layers=[0]),
        low_rank(model, 1),
        masked(model),
    ]


@torch.no_grad()
def alone(model: EditableModel, edit: Edit, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    with model.edited(edit):
        return last_logits(model, pad_left(rows, 0, "cpu"), 3)


@torch.no_grad()
def assert_together_equals_alone(model: EditableModel, edits: Sequence[Edit], *, least: float = 1e-3) -> None:
    assert model.sharing(edits) == [tuple(range(len(edits)))]
    base = model.hf_model(random_tokens()).logits
    with model.edited_rows(edits) as population:
        groups = population.groups(len(ROWS))
        shuffled = [(11 * place + 3) % len(groups) for place in range(len(groups))]
        assert sorted(shuffled) == list(range(len(groups)))
        batch = pad_left([ROWS[index % len(ROWS)] for index in shuffled], 0, "cpu")
        with groups.rows(shuffled):
            together = last_logits(model, batch, 3)
    assert torch.equal(model.hf_model(random_tokens()).logits, base)
    unedited = alone(model, Edit.empty(model.survey), ROWS)
    for edit, each in enumerate(edits):
        expected = alone(model, each, ROWS)
        found = torch.stack([together[shuffled.index(edit * len(ROWS) + row)] for row in range(len(ROWS))])
        assert logits_difference(found.flatten(0, 1), expected.flatten(0, 1)) < 1e-4
        if each.sites:
            assert logits_difference(expected.flatten(0, 1), unedited.flatten(0, 1)) > least


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3_moe", "gpt_oss", "gemma2", "falcon"])
def test_every_kind_of_change_in_one_batch(kind: str) -> None:
    model = EditableModel(build(kind))
    assert_together_equals_alone(model, mixed(model))


def test_embeddings_and_the_head_that_is_tied_to_them() -> None:
    model = EditableModel(build("qwen3"))
    edits = [
        Edit.project(model.survey, VECTORS[:2], embedding=True),
        Edit.empty(model.survey),
        Edit.project(model.survey, VECTORS[2], strength=0.5, embedding=True),
    ]
    assert_together_equals_alone(model, edits)


@pytest.mark.parametrize("kind", ["mamba", "qwen3_next", "deepseek_v4"])
def test_other_architectures(kind: str) -> None:
    model = EditableModel(architectures.build(kind))
    edits = [
        Edit.project(model.survey, VECTORS[:2], strength=0.8),
        Edit.empty(model.survey),
        Edit.project(model.survey, VECTORS[2], layers=[1]),
    ]
    assert_together_equals_alone(model, edits)


def test_half_precision() -> None:
    model = EditableModel(build("llama", dtype=torch.bfloat16))
    edits = mixed(model)
    with model.edited_rows(edits) as population:
        groups = population.groups(1)
        with groups.rows(range(len(edits))):
            together = last_logits(model, pad_left([ROWS[4]] * len(edits), 0, "cpu"), 1)[:, -1]
    for found, edit in zip(together, edits, strict=True):
        assert logits_difference(found[None], alone(model, edit, [ROWS[4]])[:, -1]) < limit(model.dtype)


def test_rows_that_belong_to_no_edit_are_the_base_model_s_bit_for_bit() -> None:
    model = EditableModel(build("gpt2"))
    tokens = random_tokens()
    base = model.hf_model(tokens).logits
    with model.edited_rows(mixed(model)) as population:
        assert torch.equal(model.hf_model(tokens).logits, base)
        with population.groups(3, edits=[2]).rows(range(3)):
            assert torch.equal(model.hf_model(tokens).logits, base)


def test_it_nests_in_an_edit_that_is_live() -> None:
    model = EditableModel(build("llama"))
    outer, inner = Edit.project(model.survey, VECTORS[0]), Edit.project(model.survey, VECTORS[1])
    with model.edited(outer):
        expected = alone(model, inner, ROWS[:1])
        with model.edited_rows([Edit.empty(model.survey), inner]) as population, population.groups(1).rows([1]):
            found = last_logits(model, pad_left(ROWS[:1], 0, "cpu"), 3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba", "qwen3_moe"])
def test_generation_with_rows_that_leave_early(kind: str, leaves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    hf_model = architectures.build(kind, spread=2.0) if kind == "mamba" else build(kind, spread=2.0)
    model = EditableModel(hf_model, letters(template=CHATML))
    edits = [
        Edit.project(model.survey, VECTORS[:2], strength=1.5),
        Edit.empty(model.survey),
        Edit.project(model.survey, VECTORS[2:], layers=[1, 2], strength=1.5),
    ]
    free = [generate_from_tokens(model, ROWS, max_tokens=17)]
    tokens = [response.tokens for response in free[0]]
    # a token that comes up midway is made an end token
    middle = {row[len(row) // 2] for row in tokens}
    model.hf_model.generation_config.eos_token_id = sorted(middle)[:2]
    assert set(sorted(middle)[:2]) <= end_tokens(model)
    if not leaves:
        monkeypatch.setattr(generation, "_rows_can_leave", lambda model: False)

    def generate(population: Population) -> list[list[Response]]:
        found = generate_from_tokens(
            model, ROWS * len(population), max_tokens=17, batch_size=7, groups=population.groups(len(ROWS))
        )
        return [found[start : start + len(ROWS)] for start in range(0, len(found), len(ROWS))]

    together = model.measure_each(edits, generate)
    assert model.sharing(edits) == [(0, 1, 2)]
    apart = [model.measure_each([edit], generate)[0] for edit in edits]
    assert together == apart
    assert len({len(response.tokens) for some in together for response in some}) > 1
    assert len({tuple(some) for some in together}) == 3


def test_an_edit_that_must_swap_weights_is_measured_alone() -> None:
    model = EditableModel(build("qwen3_moe", spread=2.0), letters(template=CHATML))
    edits = [
        Edit.project(model.survey, VECTORS[0]),
        Edit.project(model.survey, VECTORS[1], norm="column"),
        Edit.project(model.survey, VECTORS[2]),
        Edit.project(model.survey, VECTORS[3], norm="column", roles=["attention"]),
    ]
    assert model.sharing(edits) == [(0, 2, 3), (1,)]
    with pytest.raises(SharedBatchError), model.edited_rows(edits):
        pass
    assert_evaluations_agree(model, edits)


def test_changes_of_several_kinds_at_one_writer() -> None:
    """Whether they share a batch or not."""
    model = EditableModel(build("llama"))
    projected = Edit.project(model.survey, VECTORS[:2], strength=1.5)
    edits = [projected + low_rank(model, 2), low_rank(model, 1) + low_rank(model, 2), projected]

    @torch.no_grad()
    def work(population: Population) -> Sequence[torch.Tensor]:
        groups = population.groups(len(ROWS))
        with groups.rows(range(len(groups))):
            return last_logits(model, pad_left(ROWS * len(population), 0, "cpu"), 3).split(len(ROWS))

    for edit, found in zip(edits, model.measure_each(edits, work), strict=True):
        assert logits_difference(found.flatten(0, 1), alone(model, edit, ROWS).flatten(0, 1)) < 1e-4


@pytest.mark.parametrize("kind", ["dbrx", "llama4_text"])
def test_modules_that_see_scattered_tokens_are_told(kind: str) -> None:
    model = EditableModel(architectures.build(kind), letters(template=CHATML))
    edits = [Edit.project(model.survey, VECTORS[0]), Edit.project(model.survey, VECTORS[1])]
    attention = [Edit.project(model.survey, vector, roles=["attention"]) for vector in VECTORS[:2]]
    assert model.sharing([*edits, *attention]) == [(0,), (1,), (2, 3)]
    assert_together_equals_alone(model, attention)


def test_layers_that_text_does_not_run_are_in_nobody_s_way() -> None:
    model = EditableModel(architectures.build("mllama"))
    assert_together_equals_alone(model, [Edit.project(model.survey, VECTORS[0]), Edit.empty(model.survey)])


def test_a_row_that_all_share_is_told() -> None:
    model = EditableModel(build("gpt2"))
    edits = [Edit.project(model.survey, VECTORS[0]), Edit.empty(model.survey)]
    positions = Edit.project(model.survey, VECTORS[1], embedding=True)
    assert model.sharing([*edits, positions]) == [(0, 1), (2,)]


@pytest.mark.parametrize("belief", [Layout(True, True), Layout(False, False, ran=False)])
def test_what_turns_out_midway_is_measured_again_one_at_a_time(belief: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    model = EditableModel(build("gpt2", spread=2.0), letters(template=CHATML))
    edits = [Edit.project(model.survey, vector, embedding=True) for vector in VECTORS[:2]]
    assert model.sharing(edits) == [(0,), (1,)]
    known = row_layout._LAYOUTS[model.hf_model]
    monkeypatch.setitem(row_layout._LAYOUTS, model.hf_model, {name: belief for name in known})
    assert model.sharing(edits) == [(0, 1)]
    reference = Reference.measure(model, PROMPTS[:1], Behavior.from_files("a", "b", markers=["x"]), tokens=4)
    found = reference.compare_many(model, edits)
    assert sum(not layout.outputs and layout.ran for layout in row_layout._LAYOUTS[model.hf_model].values()) == 1
    assert model.sharing(edits) == [(0,), (1,)]
    for edit, divergence in zip(edits, found, strict=True):
        with model.edited(edit):
            assert divergence == reference.compare(model)


def test_nothing_is_left_behind_after_an_error() -> None:
    model = EditableModel(build("llama"))
    edits, tokens = mixed(model), random_tokens()
    base = model.hf_model(tokens).logits

    def fail(population: Population) -> None:
        with population.groups(1).rows([0, 1, 2]):
            raise RuntimeError("stop")

    with model.edited_rows(edits) as population:
        with pytest.raises(RuntimeError, match="stop"):
            fail(population)
        assert population.assigned is None
    with pytest.raises(RuntimeError, match="stop"), model.edited_rows(edits) as population:
        fail(population)
    for module in model.hf_model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert torch.equal(model.hf_model(tokens).logits, base)


def test_a_batch_of_other_rows_than_were_assigned_is_refused() -> None:
    model = EditableModel(build("llama"))
    with (
        model.edited_rows(mixed(model)) as population,
        population.groups(1).rows([0, 1]),
        pytest.raises(SharedBatchError, match="2 rows"),
    ):
        model.hf_model(random_tokens(rows=3))


def test_edits_of_another_model_are_refused() -> None:
    other = EditableModel(build("gpt2"))
    edits = mixed(EditableModel(build("llama")))
    for use in (lambda: other.edited_rows(edits), lambda: other.sharing(edits)):
        with pytest.raises(EditMismatchError):
            use()
    foreign = [Edit(edit.sites, other.identity) for edit in edits]
    with pytest.raises(EditMismatchError), other.edited_rows(foreign):
        pass


def test_layouts_are_told_apart_by_their_values() -> None:
    rows = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    moved = rows[[2, 0, 1]]
    assert _in_order([rows], [moved])
    assert _in_order([rows.flatten(0, 1)], [moved.flatten(0, 1)])
    assert _in_order([rows, 2 * rows], [moved, 2 * moved])
    assert not _in_order([rows.transpose(0, 1)], [moved.transpose(0, 1)])
    assert not _in_order([rows.transpose(0, 1).flatten(0, 1)], [moved.transpose(0, 1).flatten(0, 1)])
    assert not _in_order([rows], [rows])
    assert not _in_order([rows[:1]], [moved[:1]])
    assert not _in_order([rows], [moved, moved])
    assert not _in_order([], [])
    assert not _in_order([None], [None])
    assert not _in_order([rows], [torch.full_like(rows, torch.nan)])


def test_a_cpu_takes_one_edit_at_a_time() -> None:
    assert favourable_count(torch.device("cpu")) == 1
    assert favourable_count(torch.device("cuda")) == 8


def assert_evaluations_agree(model: EditableModel, edits: Sequence[Edit]) -> None:
    """Every figure of the evaluations is that of one edit at a time."""
    plain = behavior_rate(model, PROMPTS, Behavior.from_files("a", "b", markers=["never"], max_tokens=24))
    marker = plain.responses[0].text[3:6]
    behavior = Behavior.from_files("a", "b", markers=[marker], max_tokens=24)
    base = behavior_rate(model, PROMPTS, behavior)
    reference = Reference.measure(model, PROMPTS, behavior, tokens=7, batch_size=4)
    onset = Onset.measure(model, PROMPTS, behavior, base.responses, batch_size=3)
    assert onset.rows
    divergences = reference.compare_many(model, edits)
    margins, estimates = onset.margin_many(model, edits), onset.estimated_rate_many(model, edits)
    rates = behavior_rate_many(model, PROMPTS, behavior, edits, batch_size=4, stop_early=True)
    for place, edit in enumerate(edits):
        with model.edited(edit):
            divergence = reference.compare(model)
            margin, estimate = onset.margin(model), onset.estimated_rate(model)
            rate: RateResult = behavior_rate(model, PROMPTS, behavior, stop_early=True)
        assert divergences[place].first.mean == pytest.approx(divergence.first.mean, rel=1e-3, abs=1e-6)
        assert divergences[place].sequence.max == pytest.approx(divergence.sequence.max, rel=1e-3, abs=1e-6)
        assert divergences[place].top1 == divergence.top1
        assert divergences[place].perplexity_ratio == pytest.approx(divergence.perplexity_ratio, rel=1e-4)
        torch.testing.assert_close(margins[place], margin, rtol=1e-3, atol=1e-3)
        assert estimates[place] == estimate
        assert rates[place] == rate


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_evaluations_of_many_edits(kind: str) -> None:
    model = EditableModel(build(kind, spread=2.0), letters(template=CHATML))
    edits = mixed(model)
    assert_evaluations_agree(model, edits)
    assert behavior_rate_many(model, [], Behavior.from_files("a", "b", markers=["x"]), edits)[1].rate.total == 0
    assert Onset((), (), (), 3).estimated_rate_many(model, edits) == [0.0] * len(edits)
    assert model.measure_each([], lambda live: []) == []
