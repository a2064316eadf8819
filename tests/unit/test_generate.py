"""Greedy generation gives the tokens Transformers gives, whatever leaves the batch when."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from excise import EditableModel, ExciseError
from excise.model import generate as module
from excise.model.decoding import Decoding
from excise.model.forward import last_logits, pad_left
from excise.model.generate import Response, end_tokens, generate, generate_from_tokens
from zoo import build as architectures
from zoo.hybrids import HYBRIDS, build_hybrid
from zoo.letters import CHATML, letters
from zoo.tiny import build

PROMPTS = ["Hello there", "What is it?", "A", "Tell me a long story about a fox", "two", "x+y"]
LENGTH = 21
ROWS = [[(97 * start + 13 * place) % 250 + 3 for place in range(start + 4)] for start in range(8)]


def make(kind: str, template: str | None = CHATML) -> EditableModel:
    hf_model = build_hybrid(kind) if kind in HYBRIDS else build(kind, spread=2.0)
    return EditableModel(hf_model, letters(template=template))


def stock(model: EditableModel, ends: frozenset[int]) -> list[tuple[int, ...]]:
    """Row by row, by Transformers."""
    settings = GenerationConfig(do_sample=False, max_new_tokens=LENGTH, eos_token_id=sorted(ends), pad_token_id=0)
    model.hf_model.generation_config = settings
    found = []
    for row in ROWS:
        ids = torch.tensor([row])
        output = model.hf_model.generate(ids, attention_mask=torch.ones_like(ids))
        found.append(tuple(output[0, len(row) :].tolist()))
    return found


def lengths_with(rows: list[tuple[int, ...]], end: int) -> set[int]:
    return {row.index(end) if end in row else len(row) for row in rows}


@pytest.mark.parametrize(
    "kind", ["llama", "gemma2", "gpt2", "mixtral", "falcon", "bloom", "mamba", "qwen3_next", "recurrent_gemma"]
)
def test_tokens_equal_those_of_transformers(kind: str) -> None:
    model = make(kind)
    assert module._rows_can_leave(model) is (kind != "recurrent_gemma")
    # windows and recurrent states are no plain keys and values, and Bloom counts positions itself
    assert module._rows_can_join(model) is (kind in ("llama", "gpt2", "mixtral", "falcon"))
    free = stock(model, end_tokens(model))
    # A token that comes up midway is made an end token: rows leave the batch at different times.
    end = max({token for row in free for token in row}, key=lambda token: len(lengths_with(free, token)))
    model.hf_model.generation_config.eos_token_id = [end]
    ends = end_tokens(model)
    expected = stock(model, ends)
    assert len({len(row) for row in expected}) > 1, "rows should end at different lengths"
    got = generate_from_tokens(model, ROWS, max_tokens=LENGTH)
    assert [response.tokens for response in got] == expected
    assert [response.finished for response in got] == [row[-1] in ends for row in expected]
    two = generate_from_tokens(model, ROWS, max_tokens=LENGTH, batch_size=2)
    assert [response.tokens for response in two] == expected


def test_rows_that_join_midway_are_what_they_are_alone() -> None:
    model = make("llama")
    alone = [generate_from_tokens(model, [row], max_tokens=LENGTH)[0] for row in ROWS]
    middle = {response.tokens[3 + place] for place, response in enumerate(alone)}
    model.hf_model.generation_config.eos_token_id = sorted(middle)
    alone = [generate_from_tokens(model, [row], max_tokens=LENGTH)[0] for row in ROWS]
    seen: list[tuple[int, int]] = []
    absorb = Decoding.absorb

    def watched(self: Decoding, other: Decoding) -> None:
        seen.append((len(self.alive), len(other.alive)))
        absorb(self, other)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoding, "absorb", watched)
        assert generate_from_tokens(model, ROWS, max_tokens=LENGTH, batch_size=4) == alone
    assert seen, "no row joined"
    assert all(sum(each) <= 4 for each in seen)


def test_texts_are_looked_at_after_as_many_tokens_however_rows_are_batched() -> None:
    model = make("llama")

    def stop(text: str) -> bool:
        return len(text) % 3 == 1

    alone = [generate_from_tokens(model, [row], max_tokens=LENGTH, stop=stop)[0] for row in ROWS]
    assert len({len(response.tokens) for response in alone}) > 1
    assert generate_from_tokens(model, ROWS, max_tokens=LENGTH, batch_size=4, stop=stop) == alone


def test_where_memory_runs_out_fewer_rows_go_on_and_none_is_lost() -> None:
    model = make("llama")
    expected = generate_from_tokens(model, ROWS, max_tokens=LENGTH)
    sizes: list[int] = []
    step = Decoding.step

    def scarce(self: Decoding) -> None:
        sizes.append(len(self.alive))
        if len(self.alive) > 2:
            raise RuntimeError("out of memory: not enough memory")
        step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoding, "step", scarce)
        assert generate_from_tokens(model, ROWS, max_tokens=LENGTH, batch_size=6) == expected
        tried = max(sizes)
        sizes.clear()
        assert generate_from_tokens(model, ROWS, max_tokens=LENGTH, batch_size=6) == expected
    assert tried == 6
    assert max(sizes) <= 2, "what did not fit is remembered"


def test_models_whose_cache_cannot_drop_rows_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")
    expected = generate(model, PROMPTS, max_tokens=LENGTH)
    monkeypatch.setattr(module, "_rows_can_leave", lambda model: False)
    settings = model.hf_model.generation_config
    assert generate(model, PROMPTS, max_tokens=LENGTH) == expected
    assert model.hf_model.generation_config is settings
    short = generate(model, PROMPTS, max_tokens=LENGTH, stop=lambda text: len(text) > 2)
    assert all(len(response.tokens) <= 16 for response in short if not response.finished)


@pytest.mark.parametrize("kind", ["blt", "reformer", "idefics", "kosmos-2", "deepseek_v4"])
def test_unusual_architectures_generate_what_passes_without_a_cache_predict(kind: str) -> None:
    model = EditableModel(architectures.build(kind, spread=2.0), letters(template=CHATML))
    assert model.survey.layers
    responses = generate_from_tokens(model, ROWS[:3], max_tokens=5)
    for row, response in zip(ROWS, responses, strict=False):
        tokens = list(row)
        for token in response.tokens:
            logits = last_logits(model, pad_left([tokens], 0, "cpu"), 1)[0, -1]
            assert float(logits[token]) > float(logits.max()) - 1e-3
            tokens.append(token)


def test_sampling_and_penalties_of_the_model_are_ignored() -> None:
    model = make("llama")
    expected = generate(model, PROMPTS, max_tokens=LENGTH)
    model.hf_model.generation_config.update(do_sample=True, temperature=9.0, repetition_penalty=3.0)
    assert generate(model, PROMPTS, max_tokens=LENGTH) == expected


def test_stop_ends_a_row_and_leaves_the_others_alone() -> None:
    model = make("gpt2")
    full = generate(model, PROMPTS, max_tokens=40)
    needle = full[0].text[3:6]
    stopped = generate(model, PROMPTS, max_tokens=40, stop=lambda text: needle in text)
    for before, after in zip(full, stopped, strict=True):
        assert before.tokens[: len(after.tokens)] == after.tokens
        if needle not in before.text:
            assert before == after
    assert len(stopped[0].tokens) < 40


def test_text_has_no_special_tokens_and_ends_are_collected_from_everywhere() -> None:
    model = make("llama")
    model.hf_model.generation_config.eos_token_id = [7, 8]
    im_end = model.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert {7, 8, 2, im_end} <= end_tokens(model)
    response = module._Judge(model.template, None).response([40, 41, im_end], frozenset({im_end}))
    assert response == Response(model.tokenizer.decode([40, 41]), (40, 41, im_end), True)


def test_the_plain_template_ends_a_response_at_the_next_turn() -> None:
    model = make("llama", template=None)
    tokens = model.tokenizer("Yes.\nUser: and", add_special_tokens=False)["input_ids"]
    judge = module._Judge(model.template, None)
    assert judge.ended([tokens]) == [True]
    response = judge.response(tokens, frozenset())
    assert (response.text, response.finished) == ("Yes.", True)
    assert model.tokenizer.decode(response.tokens) == "Yes.\nUser:"


def test_edge_cases() -> None:
    model = make("llama")
    assert generate(model, [], max_tokens=4) == []
    assert len(generate(model, ["a"], max_tokens=1)[0].tokens) == 1
    with pytest.raises(ExciseError, match="max_tokens"):
        generate(model, ["a"], max_tokens=0)
    with pytest.raises(ExciseError, match="tokenizer"):
        EditableModel(build("llama")).chat("a")


def test_progress_reaches_the_total() -> None:
    seen: list[tuple[int, int]] = []
    generate(
        make("llama"),
        PROMPTS,
        max_tokens=3,
        batch_size=2,
        progress=lambda label, done, total, unit="": seen.append((done, total)),
    )
    assert seen == [(2, 6), (4, 6), (6, 6)]
