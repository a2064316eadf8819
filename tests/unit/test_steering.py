"""Adding a vector to the stream: exactly there, for every token, and gone afterwards."""

import pytest
import torch

from excise.model import EditableModel
from excise.model.forward import forward, pad_left
from excise.model.steering import vector_added
from excise.model.streams import residuals_taken
from zoo.tiny import build


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "mixtral"])
def test_the_stream_moves_by_the_vector_and_returns(kind: str) -> None:
    model = EditableModel(build(kind))
    vector = torch.randn(model.hidden, generator=torch.Generator().manual_seed(1))
    batch = pad_left([[5, 6, 7, 8], [9, 10, 11, 12]], 0, model.device)

    def residuals() -> list[torch.Tensor]:
        with residuals_taken(list(model.layers), batch.input_ids, model.hidden, torch.clone) as taken:
            forward(model, batch)
        return taken

    before = residuals()
    with vector_added(model.layers[1], vector):
        moved = residuals()
    assert torch.equal(moved[0], before[0])
    torch.testing.assert_close(moved[1] - before[1], vector.expand_as(before[1]), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(moved[2] - before[2], vector.expand_as(before[2]), atol=1e-3)
    assert all(torch.equal(one, other) for one, other in zip(residuals(), before, strict=True))


@pytest.mark.parametrize("shape", ["tensor", "tuple", "list", "dict", "streams"])
def test_whatever_a_layer_returns_is_returned_alike(shape: str) -> None:
    class Layer(torch.nn.Module):
        def forward(self, stream: torch.Tensor) -> object:
            kinds = {
                "tensor": stream,
                "tuple": (stream, "cache"),
                "list": [stream, None],
                "dict": {"hidden_states": stream, "cache": 1},
                "streams": (torch.cat([stream, stream], dim=-1), "cache"),
            }
            return kinds[shape]

    layer, stream = Layer(), torch.zeros(1, 3, 4)
    with vector_added(layer, torch.tensor([1.0, 2.0, 3.0, 4.0])):
        output = layer(stream)
    assert type(output) is type(layer(stream))
    values = list(output.values()) if isinstance(output, dict) else list(output) if shape != "tensor" else [output]
    wanted = [1.0, 2.0, 3.0, 4.0] * (2 if shape == "streams" else 1)
    assert values[0][0, 2].tolist() == wanted
    assert values[1:] == {"tuple": ["cache"], "list": [None], "dict": [1], "streams": ["cache"]}.get(shape, [])
    assert stream.abs().max() == 0
