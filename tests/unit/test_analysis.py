"""Attribution adds up to what is measured, and says of every component what removing it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from accelerate import cpu_offload
from torch import nn
from transformers import PreTrainedModel

import excise.analysis.writes as writes
from excise import Edit, EditableModel
from excise.activations import Responses
from excise.analysis.attribution import Attribution, _difference
from excise.analysis.confirmation import Confirmation, Effect
from excise.analysis.pools import Component, Kind, Pool, ablation, pools
from excise.analysis.writes import Writes, measure_writes
from excise.model.findings import GainStep
from excise.model.forward import forward, pad_left
from excise.model.streams import residuals_taken
from zoo import build as zoo
from zoo.packed import Packed
from zoo.tiny import build

GENERATOR = torch.Generator().manual_seed(1)
TARGET, BASELINE = (
    [torch.randint(3, 250, (length,), generator=GENERATOR).tolist() for length in lengths]
    for lengths in ((12, 17, 9, 12), (20, 15, 11))
)
KINDS = ["llama", "qwen3", "gemma2", "gemma3_text", "gpt2", "mixtral", "qwen3_moe", "gpt_oss", "olmo2", "phi", "falcon"]
# Gates that look at the stream, two norms in a row, shared experts, other mixers, hyper-connections, factors.
OTHERS = ["qwen2_moe", "gemma4_text", "deepseek_v3", "qwen3_next", "granite", "falcon_h1", "jetmoe"]


def direction(model: EditableModel) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(model.hidden, generator=torch.Generator().manual_seed(2)), dim=0)


def measure(model: EditableModel, rows: Sequence[Sequence[int]] = TARGET, *, batch_size: int = 2) -> Writes:
    nothing = Responses(tuple(() for _ in rows), (0,) * len(rows))
    return measure_writes(model, rows, nothing, "-1", direction(model), batch_size=batch_size)


def attribution(model: EditableModel, *, layer: int = 3) -> Attribution:
    return _difference(model, measure(model), measure(model, BASELINE), "-1", layer)


def stream(model: EditableModel, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """What the residual stream holds along the direction after every layer, at the last token, in the mean."""
    held = []
    for row in rows:
        batch = pad_left([row], 0, model.device)
        with residuals_taken(list(model.layers), batch.input_ids, model.hidden, lambda found: found[0, -1]) as taken:
            forward(model, batch)
        held.append(torch.stack(taken).double() @ direction(model).double())
    return torch.stack(held).mean(dim=0)


def assert_adds_up(model: EditableModel, *, within: float = 2e-5) -> None:
    found = attribution(model)
    measured = stream(model, TARGET) - stream(model, BASELINE)
    torch.testing.assert_close(found.stream[1:], measured, atol=1e-5, rtol=1e-5)
    steps = found.stream.diff()
    torch.testing.assert_close(
        torch.tensor(found.layer_totals()).double(), steps, atol=within * float(steps.abs().max()), rtol=0
    )
    assert found.accounted == pytest.approx(1.0, abs=100 * within)


@pytest.mark.parametrize("kind", KINDS)
def test_writes_add_up_to_the_stream(kind: str) -> None:
    assert_adds_up(EditableModel(build(kind)))


@pytest.mark.parametrize("kind", OTHERS)
def test_writes_add_up_on_unusual_paths(kind: str) -> None:
    assert_adds_up(EditableModel(zoo.build(kind), allow_partial=True))


def test_writes_add_up_in_hyper_connections() -> None:
    """But for what their mixing matrices lack of being doubly stochastic."""
    assert_adds_up(EditableModel(zoo.build("deepseek_v4")), within=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_add_up_to_the_write(kind: str) -> None:
    """A bias is in both means and drops out of the difference, unless the router decides whether it counts."""
    model = EditableModel(build(kind))
    found = attribution(model)
    assert set(found.parts) == {writer.parameter for writer in model.survey.writers if writer.layer >= 0}
    for writer in model.survey.writers:
        if writer.layer >= 0 and (writer.bias is None or writer.role != "expert"):
            assert float(found.parts[writer.parameter].sum()) == pytest.approx(found.totals[writer.parameter], abs=2e-5)


@torch.no_grad()
def test_a_contribution_is_the_weight_along_the_direction_times_the_input() -> None:
    model = EditableModel(build("llama"))
    inputs: list[torch.Tensor] = []
    module = model.hf_model.get_submodule("model.layers.2.self_attn.o_proj")
    handle = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0, -1]))
    means = []
    for rows in (TARGET, BASELINE):
        for row in rows:
            model.hf_model(torch.tensor([row]))
        means.append(torch.stack(inputs).double().mean(dim=0))
        inputs.clear()
    handle.remove()
    assert isinstance(module.weight, torch.Tensor)
    expected = (direction(model).double() @ module.weight.double()) * (means[0] - means[1])
    found = attribution(model)
    torch.testing.assert_close(found.parts["model.layers.2.self_attn.o_proj.weight"], expected, atol=1e-6, rtol=1e-5)
    heads = [each for each in pools(found)["head"].largest(16) if each.layer == 2]
    for head in heads:
        span = slice(16 * head.index[0], 16 * (head.index[0] + 1))
        assert head.contribution == pytest.approx(float(expected[span].sum()), abs=1e-5)


@torch.no_grad()
def test_behind_a_norm_the_scale_of_the_norm_counts() -> None:
    model = EditableModel(build("gemma2"))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    module = model.hf_model.get_submodule("model.layers.1.mlp.down_proj")
    handle = module.register_forward_hook(lambda _, args, output: seen.append((args[0][0, -1], output[0, -1])))
    for row in TARGET:
        model.hf_model(torch.tensor([row]))
    handle.remove()
    gain = 1 + model.hf_model.get_parameter("model.layers.1.post_feedforward_layernorm.weight").double()
    along = (gain * direction(model)) @ module.weight.double()  # type: ignore[operator]
    scaled = [given.double() / output.double().square().mean().sqrt() for given, output in seen]
    expected = along * torch.stack(scaled).mean(dim=0)
    torch.testing.assert_close(
        measure(model).parts["model.layers.1.mlp.down_proj.weight"], expected, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "qwen3_moe", "gpt_oss"])
def test_removing_a_component_takes_its_contribution_out_of_the_stream(kind: str) -> None:
    """Exactly so behind its own layer, where nothing after it in that layer has read it yet."""
    model = EditableModel(build(kind))
    found = attribution(model)
    for pool in pools(found).values():
        if pool.kind not in ("neuron", "expert"):
            continue
        for component in pool.largest(3):
            with model.edited(ablation(model.survey, found, [component])):
                without = stream(model, TARGET) - stream(model, BASELINE)
            change = float(found.stream[component.layer + 1] - without[component.layer])
            assert change == pytest.approx(component.contribution, abs=2e-5)


class ListedExperts(nn.Module):
    """The experts of a fused bank as a list of modules, as code that comes with checkpoints has them."""

    def __init__(self, bank: nn.Module) -> None:
        super().__init__()
        self.act = nn.SiLU()
        self.experts = nn.ModuleList()
        for gate_up, down in zip(bank.gate_up_proj, bank.down_proj, strict=True):  # type: ignore[arg-type]
            expert = nn.Module()
            for name, weight in (("gate_up_proj", gate_up), ("down_proj", down)):
                linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                linear.weight.data = weight.detach().clone()
                setattr(expert, name, linear)
            self.experts.append(expert)

    def forward(self, states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(states)
        for index, expert in enumerate(self.experts):
            token, place = torch.where(chosen == index)
            if len(token):
                gate, up = expert.gate_up_proj(states[token]).chunk(2, dim=-1)  # type: ignore[operator]
                added = expert.down_proj(self.act(gate) * up) * weights[token, place, None]  # type: ignore[operator]
                total = total.index_add(0, token, added)
        return total


def listed_experts() -> PreTrainedModel:
    model = build("qwen3_moe")
    for layer in model.model.layers:  # type: ignore[union-attr]
        layer.mlp.experts = ListedExperts(layer.mlp.experts)
    return model


def test_listed_experts_get_what_fused_ones_do() -> None:
    fused, listed = EditableModel(build("qwen3_moe")), EditableModel(listed_experts())
    one, other = attribution(fused), attribution(listed)
    for layer in range(4):
        bank = one.parts[f"model.layers.{layer}.mlp.experts.down_proj"]
        for expert, expected in enumerate(bank):
            name = f"model.layers.{layer}.mlp.experts.experts.{expert}.down_proj.weight"
            torch.testing.assert_close(other.parts[name], expected, atol=1e-6, rtol=1e-5)
    mine, theirs = pools(one)["expert"].largest(16), pools(other)["expert"].largest(16)
    assert [each.contribution for each in mine] == pytest.approx([each.contribution for each in theirs], abs=1e-6)
    assert len(pools(one)["neuron"]) == len(pools(other)["neuron"])
    with listed.edited(ablation(listed.survey, other, theirs[:2])):
        without = stream(listed, TARGET)
    with fused.edited(ablation(fused.survey, one, mine[:2])):
        torch.testing.assert_close(stream(fused, TARGET), without, atol=1e-5, rtol=1e-5)


def test_an_expert_that_no_token_is_sent_to_writes_nothing() -> None:
    model = EditableModel(listed_experts())
    idle = "model.layers.1.mlp.experts.experts.2.down_proj.weight"
    nothing = Writes(torch.zeros(5).double(), {}, {}, {})
    found = measure(model)
    kept = {name: part for name, part in found.parts.items() if name != idle}
    some = _difference(model, Writes(found.stream, found.totals, kept, {}), nothing, "-1", 3)
    assert not some.parts[idle].any()
    assert len(pools(some)["expert"]) == 16


def test_packed_weights_are_read_through_their_modules() -> None:
    packed, plain = EditableModel(build("llama")), EditableModel(build("llama"))
    assert packed.survey.writers == plain.survey.writers
    for name in ("mlp.down_proj", "self_attn.o_proj"):
        for model in (packed, plain):
            parent, _, child = f"model.layers.1.{name}".rpartition(".")
            module = Packed(model.hf_model.get_parameter(f"{parent}.{child}.weight").data)
            if model is packed:
                setattr(model.hf_model.get_submodule(parent), child, module)
            else:
                model.hf_model.get_parameter(f"{parent}.{child}.weight").data = module.weight.float() * module.step
    one, other = attribution(packed), attribution(plain)
    assert one.whole == {}
    for name, part in other.parts.items():
        torch.testing.assert_close(one.parts[name], part, atol=1e-6, rtol=1e-4)


def test_offloaded_weights_are_read_through_their_modules() -> None:
    offloaded, plain = EditableModel(build("qwen3_moe")), EditableModel(build("qwen3_moe"))
    assert offloaded.survey.writers == plain.survey.writers
    cpu_offload(offloaded.hf_model.get_submodule("model.layers.2"), execution_device=torch.device("cpu"))
    one, other = attribution(offloaded), attribution(plain)
    bank, attention = "model.layers.2.mlp.experts.down_proj", "model.layers.2.self_attn.o_proj.weight"
    assert list(one.whole) == [bank]
    assert "offloaded" in one.whole[bank]
    assert one.totals[bank] == pytest.approx(other.totals[bank], abs=1e-6)
    torch.testing.assert_close(one.parts[attention], other.parts[attention], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3_moe"])
def test_half_precision(kind: str) -> None:
    model = EditableModel(build(kind, dtype=torch.bfloat16))
    found = attribution(model)
    steps = found.stream.diff()
    totals = torch.tensor(found.layer_totals()).double()
    torch.testing.assert_close(totals, steps, atol=0.03 * float(steps.abs().max()), rtol=0)


@pytest.mark.parametrize(
    ("kind", "parameter", "why"),
    [
        ("dbrx", "transformer.blocks.0.ffn.experts.mlp.w2", "by another module"),
        ("longcat_flash", "model.layers.0.mlp.experts.down_proj", "no module shows"),
        ("falcon_h1", "model.layers.0.mamba.out_proj.weight", "neither heads nor neurons"),
    ],
)
def test_what_cannot_be_split_is_said(kind: str, parameter: str, why: str) -> None:
    found = attribution(EditableModel(zoo.build(kind), allow_partial=True))
    assert why in found.whole[parameter]
    by_kind = pools(found)
    for kind in {"head", "neuron", "expert"} & set(by_kind):
        assert parameter not in {each.parameter for each in by_kind[kind].largest(len(by_kind[kind]))}
    shown = {each.parameter for each in by_kind["writer"].largest(len(by_kind["writer"]))}
    assert (parameter in shown) == (parameter in found.totals)


def test_a_norm_whose_scale_cannot_be_held_is_said() -> None:
    model = EditableModel(build("llama"))
    parameter = "model.layers.2.mlp.down_proj.weight"
    model.__dict__["survey"] = replace(model.survey, paths={parameter: ((GainStep(),),)})
    found = attribution(model)
    assert list(found.whole) == [parameter]
    assert "norm without a gain" in found.whole[parameter]
    assert parameter not in found.parts


def test_a_gain_that_is_something_else_is_said() -> None:
    model = EditableModel(build("gemma2"))
    with torch.no_grad():
        model.survey  # noqa: B018 - what it says of the gain is then no longer true
        model.hf_model.get_parameter("model.layers.2.post_feedforward_layernorm.weight").mul_(-2).add_(1)
    found = attribution(model)
    assert list(found.whole) == ["model.layers.2.mlp.down_proj.weight"]


def test_a_width_that_is_no_number_of_heads_is_said() -> None:
    model = EditableModel(build("llama"))
    model.hf_model.config.num_attention_heads = 5
    found = attribution(model)
    assert "heads (5)" in found.whole["model.layers.0.self_attn.o_proj.weight"]
    assert "head" not in pools(found)


def test_the_model_is_left_as_it_was() -> None:
    model = EditableModel(build("qwen3_moe"))
    frozen = model.hf_model.get_parameter("model.layers.0.self_attn.q_proj.weight").requires_grad_(False)
    tokens = torch.tensor([TARGET[0]])
    with torch.no_grad():
        before = model.hf_model(tokens).logits
    wanted = {name: parameter.requires_grad for name, parameter in model.hf_model.named_parameters()}
    measure(model)
    assert {name: parameter.requires_grad for name, parameter in model.hf_model.named_parameters()} == wanted
    assert not frozen.requires_grad
    assert all(parameter.grad is None for parameter in model.hf_model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf_model.modules())
    with torch.no_grad():
        assert torch.equal(model.hf_model(tokens).logits, before)


def test_a_batch_that_does_not_fit_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = EditableModel(build("llama"))
    whole = measure(model, batch_size=1)
    real = writes._Watch.sums

    def too_large(watch: writes._Watch) -> writes._Sums:
        if len(watch.tokens) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(watch)

    monkeypatch.setattr(writes._Watch, "sums", too_large)
    again = measure(model, batch_size=4)
    torch.testing.assert_close(again.stream, whole.stream)
    assert again.totals == pytest.approx(whole.totals)


def test_positions_of_the_response() -> None:
    model = EditableModel(build("llama"))
    joined = [[*row, 7, 8, 9] for row in TARGET]
    responses = Responses(tuple((7, 8, 9) for _ in TARGET), (1,) * len(TARGET))
    found = {
        position: measure_writes(model, TARGET, responses, position, direction(model), batch_size=2)
        for position in ("onset", "+1", "response", "-1")
    }
    torch.testing.assert_close(found["onset"].stream, measure(model, [row[:-2] for row in joined]).stream)
    torch.testing.assert_close(found["+1"].stream, found["onset"].stream)
    torch.testing.assert_close(found["-1"].stream, measure(model).stream)
    three = [measure(model, [row[: len(row) - 2 + extra] for row in joined]) for extra in range(3)]
    name = "model.layers.2.mlp.down_proj.weight"
    mean = torch.stack([each.parts[name] for each in three]).mean(dim=0)
    torch.testing.assert_close(found["response"].parts[name], mean, atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def moe() -> tuple[EditableModel, Attribution]:
    model = EditableModel(build("qwen3_moe"))
    return model, attribution(model)


def test_components_are_found_by_their_place(moe: tuple[EditableModel, Attribution]) -> None:
    by_kind = pools(moe[1])
    assert {kind: len(pool) for kind, pool in by_kind.items()} == {
        "layer": 4,
        "writer": 9,
        "head": 16,
        "neuron": 4 * 4 * 24,
        "expert": 16,
    }
    bank = "model.layers.2.mlp.experts.down_proj"
    neuron = by_kind["neuron"].at(2 * 96 + 3 * 24 + 5)
    assert (neuron.parameter, neuron.index, neuron.layer) == (bank, (3, 5), 2)
    assert neuron.label == "layer 2 expert 3 neuron 5"
    assert neuron.contribution == float(moe[1].parts[bank][3, 5])
    assert neuron.share == pytest.approx(neuron.contribution / moe[1].gap)
    expert = by_kind["expert"].at(9)
    assert (expert.parameter, expert.index, expert.label) == (bank, (1,), "layer 2 expert 1")
    assert by_kind["layer"].at(1).label == "layer 1"
    assert {each.label for each in by_kind["writer"].largest(9)} >= {"embeddings", "layer 3"}


def test_an_ablation_masks_what_it_is_given(moe: tuple[EditableModel, Attribution]) -> None:
    model, found = moe
    bank, attention = "model.layers.2.mlp.experts.down_proj", "model.layers.1.self_attn.o_proj.weight"

    def component(kind: Kind, layer: int, parameter: str, *index: int) -> Component:
        return Component(kind, layer, parameter, index, 0.0, 0.0)

    edit = ablation(
        model.survey,
        found,
        [
            component("expert", 2, bank, 1),
            component("neuron", 2, bank, 3, 5),
            component("head", 1, attention, 2),
        ],
    )
    scales = {site.writer.parameter: site.changes[0].scale for site in edit.sites}  # type: ignore[union-attr]
    expected = torch.ones(4, 24)
    expected[1], expected[3, 5] = 0.0, 0.0
    assert torch.equal(scales[bank], expected)
    heads = torch.ones(4, 24)
    heads[2] = 0.0
    assert torch.equal(scales[attention], heads.flatten())


def test_those_that_contribute_most_and_others() -> None:
    values = torch.tensor([0.1, -3.0, 2.0, 0.0, 1.0, -0.5], dtype=torch.float64)
    (member,) = pools(attribution(EditableModel(build("llama"))))["layer"].members[:1]
    pool = Pool("layer", (member,) * 6, values, 2.0)
    assert [each.contribution for each in pool.largest(3)] == [-3.0, 2.0, 1.0]
    assert pool.writing(4) == [2, 4, 0]
    drawn = pool.others([2, 4], 3, seed=0)
    assert len(set(drawn)) == 3
    assert not {2, 4} & set(drawn)
    assert drawn == pool.others([2, 4], 3, seed=0)
    assert len(pool.others([2, 4], 9, seed=1)) == 4


def test_what_counts_as_confirmed() -> None:
    """Log-odds that fall at least twice as far as in every random ablation."""

    def confirmed(margin: float, *control: float) -> bool:
        base, together, *others = (Effect(0.5, value, 0.0, 0.0) for value in (4.0, margin, *control))
        return Confirmation("head", (), base, together, (), tuple(others)).confirmed

    assert confirmed(-1.0, 3.0, 4.5)
    assert confirmed(3.9, 4.0, 4.2)
    assert not confirmed(2.5, 3.0, 4.0)
    assert not confirmed(4.1, 4.0, 4.2)
    assert not confirmed(-1.0)


def test_a_no_op_ablation_changes_nothing(moe: tuple[EditableModel, Attribution]) -> None:
    model, found = moe
    assert ablation(model.survey, found, []) == Edit.empty(model.survey)
