"""Residuals at chosen positions: what the hooks pick equals the stack of hidden states, row by row."""

import pytest
import torch
from torch import nn

from excise.activations import MomentAccumulator
from excise.activations.capture import Responses, stream_residuals, winsorised
from excise.activations.positions import plan_positions
from excise.errors import BehaviorError, ModelError
from excise.model import EditableModel
from excise.model.forward import padding_is_exact
from excise.model.inputs import run
from excise.model.streams import residual_of, residuals_taken
from zoo import build as architectures
from zoo.tiny import build

PROMPTS = [[5, 9, 11, 40, 7], [3, 8], [12, 13, 14, 15, 16, 17, 18, 19, 20], [4, 6, 30]]
ONSETS = [2, 0, 1, 3]
RESPONSES = Responses(((21, 22, 23), (24,), (25, 26), (27, 28, 29)), tuple(ONSETS))
POSITIONS = ("-1", "-3", "+1", "response", "onset")


def captured(model: EditableModel, *, batch_size: int) -> torch.Tensor:
    kept: dict[int, torch.Tensor] = {}
    stream_residuals(
        model,
        PROMPTS,
        RESPONSES,
        POSITIONS,
        lambda indices, values: kept.update(zip(indices, values, strict=True)),
        batch_size=batch_size,
    )
    return torch.stack([kept[index] for index in range(len(PROMPTS))])


def keeping(streams: list[torch.Tensor]):
    return lambda _, __, output: streams.append(output[0] if isinstance(output, tuple) else output)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_they_equal_the_hidden_states_of_each_row_alone(kind: str) -> None:
    model = EditableModel(build(kind))
    found = captured(model, batch_size=3)
    assert found.dtype == torch.float32
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES.tokens, strict=True)):
        streams: list[torch.Tensor] = []
        hooks = [layer.register_forward_hook(keeping(streams)) for layer in model.layers]
        with torch.no_grad():
            model.hf_model(input_ids=torch.tensor([[*prompt, *response]]))
        for hook in hooks:
            hook.remove()
        stack = torch.stack([stream[0] if stream.ndim == 3 else stream for stream in streams], dim=1)
        last = len(prompt)
        at_onset = stack[last + ONSETS[row] - 1]
        expected = torch.stack(
            [stack[last - 1], stack[max(last - 3, 0)], stack[last], stack[last:].mean(dim=0), at_onset]
        )
        torch.testing.assert_close(found[row], expected, rtol=2e-4, atol=2e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("kind", "padded"),
    [
        ("deepseek_v4", False),  # (row, token, stream, hidden), and attention over blocks that padding would shift
        ("glm5_next", True),  # (row, token, stream, hidden)
        ("gemma3n_text", True),  # (stream, row, token, hidden)
        ("qwen4_exp_text", True),  # (row, token, stream x hidden)
        ("hrm_text", True),  # layers that are run in cycles
        ("gemma4_text", True),  # last layers that run on fewer tokens where few logits are wanted
        ("blip", True),  # a tower that looks at later tokens unless it is told otherwise
        ("mllama", True),  # layers that text alone does not run
        ("reformer", False),  # two streams, and tokens appended on the right
        ("rwkv", False),  # a state that padding enters
        ("kosmos-2", False),  # positions that do not begin at 0
    ],
)
def test_every_architecture_has_one_residual_per_token_the_same_in_any_batch(kind: str, padded: bool) -> None:
    model = EditableModel(architectures.build(kind), allow_partial=True)
    hidden, layers = model.hidden, list(model.layers)
    assert padding_is_exact(model) is padded
    found = captured(model, batch_size=4)
    assert found.shape == (len(PROMPTS), len(POSITIONS), len(layers), hidden)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES.tokens, strict=True)):
        tokens = torch.tensor([[*prompt, *response]])
        with torch.no_grad(), residuals_taken(layers, tokens, hidden, lambda stream: stream[0].clone()) as taken:
            model.hf_model(input_ids=tokens, use_cache=False) if kind == "mllama" else run(model.hf_model, tokens)
        expected = torch.stack(taken, dim=1)[[len(prompt) - 1, len(prompt)]]
        torch.testing.assert_close(found[row, [0, 2]], expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_the_residual_is_the_mean_over_the_streams() -> None:
    tokens, parts = torch.zeros(3, 7, dtype=torch.long), torch.randn(3, 7, 4, 8)
    expected = parts.mean(dim=2)
    for output in (parts, parts.movedim(2, 0), parts.flatten(2), tuple(parts.unbind(2))):
        torch.testing.assert_close(residual_of(output, tokens, 8), expected)
    assert residual_of((parts[:, :, 0], None), tokens, 8).equal(parts[:, :, 0])
    assert residual_of(torch.cat([parts[:, :, 0]] * 2, dim=1), tokens, 8).equal(parts[:, :, 0])
    with pytest.raises(ModelError, match="shape"):
        residual_of(parts, torch.zeros(5, 7, dtype=torch.long), 8)
    with pytest.raises(ModelError, match="apart"):
        residual_of(torch.randn(4, 4, 4, 8), torch.zeros(4, 4, dtype=torch.long), 8)


def test_layers_that_are_run_in_cycles_give_their_last_call_and_idle_ones_what_comes_before() -> None:
    layers, tokens = [nn.Linear(8, 8) for _ in range(3)], torch.zeros(1, 2, dtype=torch.long)
    first, last = torch.randn(1, 2, 8), torch.randn(1, 2, 8)
    with residuals_taken(layers, tokens, 8, lambda stream: stream) as taken:
        layers[1](first)
        again = layers[1](last)
    assert len(taken) == 3
    assert all(stream.equal(again) for stream in taken)
    with pytest.raises(ModelError, match="none"), residuals_taken(layers, tokens, 8, lambda stream: stream):
        pass
    assert not any(layer._forward_hooks for layer in layers)


def test_the_batch_size_does_not_matter_and_no_hook_stays() -> None:
    model = EditableModel(build("llama"))
    one, four = captured(model, batch_size=1), captured(model, batch_size=4)
    torch.testing.assert_close(one, four, rtol=1e-4, atol=1e-4 * float(one.abs().max()))
    assert all(not layer._forward_hooks for layer in model.layers)


def test_streamed_moments_equal_those_of_the_kept_residuals() -> None:
    model = EditableModel(build("llama"))
    streamed, whole = MomentAccumulator(), captured(model, batch_size=4)
    stream_residuals(model, PROMPTS, RESPONSES, POSITIONS, lambda _, values: streamed.update(values), batch_size=2)
    torch.testing.assert_close(streamed.result().mean.float(), whole.mean(dim=0), rtol=1e-3, atol=1e-4)
    assert streamed.result().count == len(PROMPTS)


def test_positions_are_columns_counted_from_the_right() -> None:
    plan = plan_positions(("-1", "-4", "+1", "response"), [3, 5], [2, 1])
    stream = torch.arange(12.0).reshape(2, 6, 1)
    taken = plan.take(stream)[..., 0]
    # row 0: one column of padding, prompt at 1-3, response at 4-5; row 1: prompt at 0-4, response at 5
    assert taken.tolist() == [[3.0, 1.0, 4.0, 4.5], [10.0, 7.0, 11.0, 11.0]]


def test_unknown_positions_and_missing_responses_are_refused() -> None:
    with pytest.raises(BehaviorError, match="unknown position"):
        plan_positions(("0",), [3], [1])
    with pytest.raises(BehaviorError, match="response token"):
        plan_positions(("+1",), [3], [0])


def test_winsorising_clamps_outliers_only() -> None:
    values = torch.randn(3, 2, 200, generator=torch.Generator().manual_seed(0))
    values[0, 0, 5] = 1e4
    clamped = winsorised(values, 0.99)
    assert float(clamped.abs().max()) < 10
    assert float((clamped == values).float().mean()) > 0.98
    torch.testing.assert_close(winsorised(values, 1.0), values)
