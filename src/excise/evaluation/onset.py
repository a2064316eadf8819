"""A forecast of the behavior rate from one forward pass, without generating.

On responses of the base model that show the behavior, the sentence that shows it begins with one of a few tokens. How
likely those tokens are at that very place, after an edit, tells whether the sentence would still be begun. A response
that does not show it would first do so where those tokens are likeliest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from excise.behaviors import Behavior
from excise.edit import Edit
from excise.errors import InputError
from excise.model import EditableModel
from excise.model.forward import TokenModel, last_logits, pad_id, pad_left, rows_that_fit, run_in_batches
from excise.model.generate import Response, TextModel
from excise.model.onset import onset_token, token_at
from excise.model.row_groups import Population
from excise.model.template import ChatTemplate
from excise.progress import Progress, silent


@dataclass(frozen=True)
class Onset:
    """Where the base model begins to show the behavior, or would.

    rows     prompt and response up to that place, for each prompt whose response shows it, or for all of them
    tokens   the tokens that follow there where it is shown, over all rows
    prompts  for each row, the index of its prompt
    total    number of prompts looked at, those that do not show the behavior included
    """

    rows: tuple[tuple[int, ...], ...]
    tokens: tuple[int, ...]
    prompts: tuple[int, ...]
    total: int
    batch_size: int | None = None

    @classmethod
    def measure(
        cls,
        model: TextModel,
        prompts: Sequence[str],
        behavior: Behavior,
        responses: Sequence[Response],
        *,
        wherever: bool = False,
        batch_size: int | None = None,
    ) -> Onset:
        """Find the onsets in the base model's `responses` to target prompts (as `behavior_rate` returns them).

        wherever  also in those that do not show it: the place where the model (with no edit live) is likeliest to begin
                  it. One pass each; without a response that shows it there are no rows either
        """
        if len(prompts) != len(responses):
            raise InputError(
                f"{len(prompts)} prompts and {len(responses)} responses", hint="give one response for each prompt"
            )
        encoded = model.template.encode(prompts, system=behavior.system, thinking=behavior.thinking)
        inside = model.template.opens_thinking(thinking=behavior.thinking)
        places = [onset_token(response, behavior, model.template, inside=inside) for response in responses]
        shown = zip(responses, places, strict=True)
        tokens = tuple(sorted({response.tokens[place] for response, place in shown if place is not None}))
        if wherever and tokens:
            for index, response in enumerate(responses):
                if places[index] is None:
                    span = _where_it_may_begin(response, behavior, model.template, inside=inside)
                    places[index] = _likeliest(model, encoded[index], response, span, tokens)
        found = [index for index, place in enumerate(places) if place is not None]
        rows = tuple((*encoded[index], *responses[index].tokens[: places[index]]) for index in found)
        return cls(rows, tokens, tuple(found), len(prompts), batch_size)

    def margin(self, model: TokenModel, *, progress: Progress = silent) -> Float[Tensor, " prompt"]:
        """For each row, log-odds that an onset token comes next under the live edit; above 0 it is more likely so."""
        return self.margin_each(model, Population(1), progress=progress)[0]

    def margin_many(
        self, model: EditableModel, edits: Sequence[Edit], *, progress: Progress = silent
    ) -> list[Float[Tensor, " prompt"]]:
        """`margin` under each edit, in shared batches where that can be; the model is left as it was."""
        return model.measure_each(edits, lambda live: self.margin_each(model, live, progress=progress))

    def margin_each(
        self, model: TokenModel, population: Population, *, progress: Progress = silent
    ) -> list[Float[Tensor, " prompt"]]:
        """`margin` under each edit of a population that is live."""
        count = len(self.rows)
        margins = torch.zeros(len(population), count)
        if not self.rows:
            return list(margins)
        size = self.batch_size or rows_that_fit(model, tokens=max(len(row) for row in self.rows))
        groups = population.groups(count)

        def work(indices: list[int]) -> Tensor:
            batch = pad_left([self.rows[index % count] for index in indices], pad_id(model), model.device)
            with groups.rows(indices):
                logits = last_logits(model, batch, 1)[:, -1]
            return _log_odds(logits.float(), self.tokens).cpu()

        rows = self.rows * len(population)
        for indices, values in run_in_batches(model, rows, work, batch_size=size, progress=progress, label="screening"):
            margins.view(-1)[indices] = values
        return list(margins)

    def estimated_rate(self, model: TokenModel, *, progress: Progress = silent) -> float:
        """Share of all prompts looked at whose margin is above 0."""
        return self.estimated_rate_each(model, Population(1), progress=progress)[0]

    def estimated_rate_many(
        self, model: EditableModel, edits: Sequence[Edit], *, progress: Progress = silent
    ) -> list[float]:
        """`estimated_rate` under each edit, in shared batches where that can be; the model is left as it was."""
        return model.measure_each(edits, lambda live: self.estimated_rate_each(model, live, progress=progress))

    def estimated_rate_each(
        self, model: TokenModel, population: Population, *, progress: Progress = silent
    ) -> list[float]:
        """`estimated_rate` under each edit of a population that is live."""
        margins = self.margin_each(model, population, progress=progress)
        return [(margin > 0).sum().item() / self.total if self.total else 0.0 for margin in margins]

    def expected_rate_each(
        self, model: TokenModel, population: Population, *, progress: Progress = silent
    ) -> list[float]:
        """Over all prompts looked at, how likely an onset token comes next, mean, under each edit of a population.

        It tells edits apart before any margin is above 0, as must be where the behavior is to be shown more often.
        """
        margins = self.margin_each(model, population, progress=progress)
        return [margin.sigmoid().sum().item() / self.total if self.total else 0.0 for margin in margins]


def _where_it_may_begin(response: Response, behavior: Behavior, template: ChatTemplate, *, inside: bool) -> range:
    """The places of a response at which its answer could still begin to show the behavior."""
    start, window = template.answer_start(response.text, inside=inside), behavior.detectors.window
    end = len(response.text) if window is None else min(len(response.text), start + window)
    first = token_at(response, start, template)
    last = token_at(response, end, template) if end < len(response.text) else len(response.tokens) - 1
    return range(first, max(first, last) + 1)


def _likeliest(model: TokenModel, prompt: Sequence[int], response: Response, span: range, tokens: Sequence[int]) -> int:
    """The place of a response, of those in `span`, where one of the tokens is likeliest to come next."""
    row = (*prompt, *response.tokens[: span[-1]])
    with torch.no_grad():
        logits = last_logits(model, pad_left([row], pad_id(model), model.device), len(span))[0]
    return span[int(_log_odds(logits.float(), tokens).argmax())]


def _log_odds(logits: Float[Tensor, "row vocab"], tokens: Sequence[int]) -> Float[Tensor, " row"]:
    index = torch.tensor(tokens, device=logits.device)
    inside = logits[:, index].logsumexp(dim=-1)
    rest = logits.index_fill(1, index, -torch.inf).logsumexp(dim=-1)
    return inside - rest
