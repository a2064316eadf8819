"""`EditableModel`: a Transformers model that can be surveyed, probed, edited reversibly and talked to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from excise.edit import Edit, ModelIdentity
from excise.errors import ModelError
from excise.model import live, probe
from excise.model.checkpoint import model_identity
from excise.model.evidence import Evidence
from excise.model.generate import generate
from excise.model.inputs import text_module
from excise.model.population import Result, measure_each, population, sharing
from excise.model.precision import is_outline
from excise.model.proof import Proof, refusal
from excise.model.row_groups import Population
from excise.model.survey import Survey, survey
from excise.model.template import ChatTemplate
from excise.model.weights import without_repacking


class EditableModel:
    """A decoder language model and its tokenizer, as everything in Excise uses them.

    hf_model   any Transformers causal language model, or a vision-language model whose text tower is one; it is put in
               evaluation mode, bitsandbytes is kept from repacking its weights, and nothing else about it changes
    tokenizer  needed only for what handles text
    path       the local checkpoint directory it came from; None for a model that exists in memory alone
    evidence   writers that somebody vouches for (`excise.model.evidence`), where the survey cannot see them
    allow_partial  go on with a survey that says what cannot be edited exactly, instead of refusing the model
    """

    def __init__(
        self,
        hf_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        path: Path | None = None,
        name: str | None = None,
        revision: str | None = None,
        evidence: Sequence[Evidence] = (),
        allow_partial: bool = False,
    ) -> None:
        self.hf_model = hf_model
        self.allow_partial = allow_partial
        self.evidence = tuple(evidence)
        self.hf_model.eval()
        without_repacking(self.hf_model)
        self._tokenizer = tokenizer
        self.path = path
        self.name = name or str(path or hf_model.config.name_or_path or type(hf_model).__name__)
        self.revision = revision

    def __repr__(self) -> str:
        return f"EditableModel({self.name!r}, {type(self.hf_model).__name__}, {self.dtype}, {self.device})"

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer. Raises `ModelError` for a model that was given none."""
        if self._tokenizer is None:
            raise ModelError("this model has no tokenizer", hint="EditableModel(hf_model, tokenizer)")
        return self._tokenizer

    @property
    def has_weights(self) -> bool:
        """Whether there is more than an outline: names and shapes on the meta device."""
        return not is_outline(self.hf_model)

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the input embeddings."""
        return next(self.hf_model.get_input_embeddings().parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the model computes in."""
        dtype: torch.dtype = self.hf_model.dtype
        return dtype

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.survey.hidden

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers; each returns the residual stream (or a tuple that starts with it)."""
        return nn.ModuleList(self.hf_model.get_submodule(name) for name in self.survey.layer_names)

    @property
    def tower(self) -> nn.Module:
        """The decoder stack without the LM head, called with the same arguments as the whole model."""
        tower: Any = text_module(self.hf_model)
        return tower.base_model if isinstance(tower, PreTrainedModel) else tower

    @cached_property
    def identity(self) -> ModelIdentity:
        """Which model this is, for refusing edits of another one."""
        return model_identity(self.hf_model.config, name=self.name, revision=self.revision, directory=self.path)

    @cached_property
    def survey(self) -> Survey:
        """Every writer of the residual stream; found once.

        Raises `SurveyError`, with the parameters and the reason, where something that reaches the stream cannot be
        edited exactly, unless `allow_partial`; and for a model that is no causal decoder.
        """
        found = survey(self.hf_model, identity=self.identity, evidence=self.evidence)
        if found.unresolved and not self.allow_partial:
            raise refusal(self.name, found)
        return found

    @cached_property
    def template(self) -> ChatTemplate:
        """How prompts are rendered for this model."""
        return ChatTemplate(self.tokenizer)

    def leak(self, direction: Float[Tensor, " hidden"] | None = None, seed: int = 0) -> float:
        """The proof of coverage: what is left of a direction after it is projected out of every writer.

        Below `leak_tolerance` (1e-4 in fp32) nothing that writes to the residual stream was missed. Raises `ModelError`
        for a model without weights.
        """
        self._require_weights()
        return probe.leak(self.hf_model, self.survey, direction=direction, seed=seed)

    def prove(self, *, seed: int = 0) -> Proof:
        """The survey and its leak, and what keeps them from being a proof. Raises what `survey` raises."""
        self._require_weights()
        found = probe.leaks(self.hf_model, self.survey, seed=seed)
        fixed = found.whole if found.whole > self.leak_tolerance >= found.varying else 0.0
        return Proof(self.name, self.survey, found.varying, fixed, self.leak_tolerance)

    def _require_weights(self) -> None:
        if not self.has_weights:
            raise ModelError(f"{self.name} has no weights here: nothing can be measured", hint="load the model itself")

    @property
    def leak_tolerance(self) -> float:
        """The leak below which coverage is proven: 1e-4, or more for models too large to be probed in fp32."""
        return probe.tolerance(self.hf_model)

    def exposure(self, direction: Float[Tensor, " hidden"], seed: int = 0) -> float:
        """The largest share of the residual stream along a direction, with whatever edit is live."""
        return probe.exposure(self.hf_model, self.survey, direction, seed=seed)

    def edited(self, edit: Edit, *, force: bool = False) -> AbstractContextManager[None]:
        """`with model.edited(edit): …` behaves as the baked model will, and leaves no trace.

        Blocks may be nested: the inner edit then acts on the outer one's result. Raises `EditMismatchError` for an edit
        of another model (`force` skips the check of weights, never that of shapes).
        """
        if not force:
            edit.identity.check(self.identity)
        return live.applied(self.hf_model, edit)

    def edited_rows(self, edits: Sequence[Edit]) -> AbstractContextManager[Population]:
        """`with model.edited_rows(edits) as population: …` computes each row of a batch with its own edit.

        `population.groups` says which rows have which. Raises `SharedBatchError` where the edits cannot share a batch
        (`measure_each` then does one at a time) and `EditMismatchError` for an edit of another model.
        """
        return population(self, self._own(edits))

    def sharing(self, edits: Sequence[Edit]) -> list[tuple[int, ...]]:
        """Which edits can share a batch, as groups of their indices; one that cannot is on its own."""
        return sharing(self, self._own(edits))

    def measure_each(self, edits: Sequence[Edit], work: Callable[[Population], Sequence[Result]]) -> list[Result]:
        """What `work` finds for each edit, with as many of them live at once as `sharing` says.

        `work` is given the edits that are live (`Population`) and returns one result for each. The results are those
        of one edit at a time, to rounding. Raises `EditMismatchError` for an edit of another model.
        """
        return measure_each(self, self._own(edits), work)

    def _own(self, edits: Sequence[Edit]) -> Sequence[Edit]:
        for edit in edits:
            edit.identity.check(self.identity)
        return edits

    def chat(self, message: str, *, system: str | None = None, max_tokens: int = 256, thinking: bool = False) -> str:
        """The model's greedy answer to one message."""
        response = generate(self, [message], system=system, thinking=thinking, max_tokens=max_tokens)
        return response[0].text

    def to(self, *args: Any, **kwargs: Any) -> EditableModel:
        """Move or cast the model in place, as `torch.nn.Module.to`."""
        self.hf_model.to(*args, **kwargs)
        return self
