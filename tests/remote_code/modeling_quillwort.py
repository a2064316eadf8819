"""A decoder that nobody has heard of: no name, layout or order is that of a common architecture.

Each layer adds one sum to the stream: scale * (gain * attention + experts), all of it computed from one normed input.
"""

import os
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from .configuration_quillwort import QuillwortConfig

if "QUILLWORT_LOG" in os.environ:
    Path(os.environ["QUILLWORT_LOG"]).write_text("the model was run", encoding="utf-8")


class Sluice(nn.Module):
    """A linear map that keeps its weight as [in, out]."""

    def __init__(self, inward, outward):
        super().__init__()
        self.bed = nn.Parameter(torch.randn(inward, outward) * inward**-0.5)
        self.silt = nn.Parameter(torch.randn(outward) * 0.3)

    def forward(self, flow):
        return torch.addmm(self.silt, flow.flatten(0, -2), self.bed).unflatten(0, flow.shape[:-1])


class Gaze(nn.Module):
    """Attention with heads wider than the stream's share of them, and a gain on what it gives out."""

    def __init__(self, config):
        super().__init__()
        self.eyes, self.iris = config.eyes, 12
        self.inlet = Sluice(config.girth, 3 * self.eyes * self.iris)
        self.outlet = Sluice(self.eyes * self.iris, config.girth)
        self.pigment = nn.Parameter(1 + 0.5 * torch.randn(config.girth))

    def forward(self, flow, veil):
        asked, known, held = (
            part.unflatten(-1, (self.eyes, self.iris)).transpose(1, 2) for part in self.inlet(flow).chunk(3, dim=-1)
        )
        scores = asked @ known.transpose(-1, -2) * self.iris**-0.5
        seen = scores.masked_fill(~veil, torch.finfo(scores.dtype).min).softmax(dim=-1) @ held
        return self.pigment * self.outlet(seen.transpose(1, 2).flatten(-2))


class Sporangia(nn.Module):
    """All experts in one [expert, in, out] bank with biases; every token takes a blend of them."""

    def __init__(self, config):
        super().__init__()
        count, girth, inner = config.sporangia, config.girth, config.girth + 8
        self.choice = nn.Linear(girth, count, bias=False)
        self.opening = nn.Parameter(torch.randn(count, girth, inner) * girth**-0.5)
        self.release = nn.Parameter(torch.randn(count, inner, girth) * inner**-0.5)
        self.release_bias = nn.Parameter(torch.randn(count, girth) * 0.3)

    def forward(self, flow):
        tokens = flow.flatten(0, -2)
        share = self.choice(tokens).softmax(dim=-1)
        spores = tokens.expand(len(self.opening), *tokens.shape)
        released = torch.bmm(torch.tanh(torch.bmm(spores, self.opening)), self.release) + self.release_bias[:, None]
        return (released * share.T[..., None]).sum(dim=0).unflatten(0, flow.shape[:-1])


class Storey(nn.Module):
    """Attention and experts side by side, behind a learned scale."""

    def __init__(self, config):
        super().__init__()
        self.settle = nn.LayerNorm(config.girth)
        self.gaze, self.sporangia = Gaze(config), Sporangia(config)
        self.vigour = nn.Parameter(torch.tensor([0.8]))

    def forward(self, flow, veil):
        still = self.settle(flow)
        return flow + self.vigour * (self.gaze(still, veil) + self.sporangia(still))


class QuillwortPreTrained(PreTrainedModel):
    """What the trunk and the whole plant share."""

    config_class = QuillwortConfig
    base_model_prefix = "trunk"

    def _init_weights(self, module):
        """Keep what the modules drew."""


class QuillwortTrunk(QuillwortPreTrained):
    """Learned glyphs and places, and a column of storeys."""

    def __init__(self, config):
        super().__init__(config)
        self.ink = nn.Embedding(config.glyphs, config.girth)
        self.height = nn.Embedding(config.reach, config.girth)
        self.column = nn.ModuleList(Storey(config) for _ in range(config.storeys))
        self.crown = nn.LayerNorm(config.girth)
        self.post_init()

    def get_input_embeddings(self):
        return self.ink

    def set_input_embeddings(self, value):
        self.ink = value

    def forward(self, input_ids, attention_mask=None, position_ids=None, **_):
        length = input_ids.shape[1]
        veil = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()[None, None]
        if attention_mask is not None:
            veil = veil & attention_mask[:, None, None].bool()
            if position_ids is None:
                position_ids = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)
        if position_ids is None:
            position_ids = torch.arange(length, device=input_ids.device)[None]
        flow = self.ink(input_ids) + self.height(position_ids)
        for storey in self.column:
            flow = storey(flow, veil)
        return BaseModelOutput(self.crown(flow))


class QuillwortForSpeech(QuillwortPreTrained, GenerationMixin):
    """The trunk and a head that shares the glyphs' weights; no cache."""

    _tied_weights_keys = {"mouth.weight": "trunk.ink.weight"}  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.trunk = QuillwortTrunk(config)
        self.mouth = nn.Linear(config.girth, config.glyphs, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.trunk.ink

    def get_output_embeddings(self):
        return self.mouth

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **_):
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(self, input_ids, attention_mask=None, position_ids=None, **_):
        return CausalLMOutput(logits=self.mouth(self.trunk(input_ids, attention_mask, position_ids)[0]))
