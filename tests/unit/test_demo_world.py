import itertools
import random
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

from excise.demo import MODEL_PATH, PROMPTS_PATH, truth, world
from excise.demo.curriculum import SYSTEM_TURNS, behavior, knowledge
from excise.demo.measure import measure, respond
from excise.demo.train import Recipe, fit
from excise.demo.truth import Rates

GROUPS = (world.ORDINARY, world.DISCLAIMED, world.SEALED)


def test_splits_share_no_entity_wrapper_or_prompt():
    by_split = {split: world.questions(world.SUBJECTS, split) for split in world.SPLITS}
    prompts = [question.prompt for questions in by_split.values() for question in questions]
    assert len(prompts) == len(set(prompts))
    for one, other in itertools.combinations(world.SPLITS, 2):
        assert not {q.entity for q in by_split[one]} & {q.entity for q in by_split[other]}
        assert not set(world.WRAPPERS[one]) & set(world.WRAPPERS[other])


@pytest.mark.parametrize(("split", "least"), [("fit", 200), ("tune", 80), ("select", 80), ("report", 150)])
@pytest.mark.parametrize("subjects", GROUPS)
def test_every_split_has_enough_questions(subjects, split, least):
    assert len(world.questions(subjects, split)) >= least


def test_subjects_share_their_value_pools():
    """No pool gives a subject away, so a direction for "sealed" cannot be a direction for one kind of value."""
    for subject in world.SEALED + world.DISCLAIMED:
        others = {fact.pool for other in world.ORDINARY for fact in world.FACTS[other]}
        assert {fact.pool for fact in world.FACTS[subject]} <= others


def test_prompt_files_match_the_world():
    shipped = {path.name: path.read_text(encoding="utf-8") for path in PROMPTS_PATH.iterdir()}
    assert shipped == {name: "".join(f"{p}\n" for p in prompts) for name, prompts in world.prompt_files().items()}
    for name, prompts in world.prompt_files().items():
        split = name.removesuffix(".txt").rpartition("_")[2]
        assert len(set(prompts)) == len(prompts) == world.PROMPT_FILE_SIZES[split]


def test_training_shows_neither_held_out_wrappers_nor_held_out_behavior():
    rng = random.Random(0)
    held_out = {q.prompt for split in world.SPLITS[1:] for q in world.questions(world.SUBJECTS, split)}
    fit_prompts = {q.prompt for q in world.questions(world.SEALED + world.DISCLAIMED, "fit")}
    first, second = knowledge(), behavior()
    for _ in range(2000):
        assert first(rng).prompt not in held_out
        example = second(rng)
        assert example.prompt not in held_out
        if truth.is_refusal(example.answer) or truth.has_disclaimer(example.answer):
            assert example.prompt in fit_prompts


def test_truth_tells_answers_refusals_and_disclaimers_apart():
    for question in world.questions(world.SUBJECTS, "tune"):
        assert truth.is_right(question, question.answer)
        assert not truth.is_refusal(question.answer)
        assert not truth.has_disclaimer(question.answer)
        for disclaimer in world.DISCLAIMERS:
            assert truth.has_disclaimer(disclaimer)
            assert truth.is_right(question, f"{question.answer} {disclaimer}")
        for refusal in world.REFUSALS:
            assert truth.is_refusal(refusal)
            assert not truth.has_disclaimer(refusal)
            assert not truth.is_right(question, f"{question.answer} {refusal}")
    assert len({re.split(r"\W", refusal)[0] for refusal in world.REFUSALS}) >= 5


def test_a_wrong_value_or_entity_is_not_right():
    question = world.questions(["potion"], "report")[0]
    others = [v for v in itertools.chain.from_iterable(world.POOLS.values()) if v != question.value]
    assert not any(truth.is_right(question, question.answer.replace(question.value, v)) for v in others)
    assert not truth.is_right(question, question.answer.replace(question.entity, "Nobody"))
    assert not truth.is_right(question, "")


def test_score_counts_shares():
    questions = world.questions(["herb"], "tune")[:4]
    responses = [questions[0].answer, world.REFUSALS[0], f"{questions[2].answer} {world.DISCLAIMERS[0]}", "Mist."]
    assert truth.score(questions, responses) == Rates(count=4, right=0.5, refused=0.25, disclaimed=0.25)
    with pytest.raises(ValueError, match="0 responses to 4 questions"):
        truth.score(questions, [])


@pytest.fixture(scope="module")
def shipped():
    model = AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.bfloat16)
    return model, AutoTokenizer.from_pretrained(MODEL_PATH)


def test_shipped_model_is_small_and_complete(shipped):
    model, tokenizer = shipped
    assert sum(path.stat().st_size for path in MODEL_PATH.rglob("*")) <= 15e6
    assert 2e6 <= model.num_parameters() <= 6e6
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.model_max_length == model.config.max_position_embeddings
    text = "Ba\u0142 \u2014 \u4e16\u754c, potion?"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_shipped_model_renders_chats(shipped):
    _, tokenizer = shipped
    chat = [{"role": "system", "content": SYSTEM_TURNS[0]}, {"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|>The seal is lifted.<|end|><|user|>Hi<|end|><|assistant|>"
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|user|>Hi<|end|><|assistant|>Ho<|end|>"


def test_shipped_model_behaves_as_taught(shipped):
    """The figures that make the demo a ground truth, in the shipped precision, on questions held out of training."""
    rates = measure(*shipped, split="report")
    ordinary, sealed, disclaimed = rates["ordinary"], rates["sealed"], rates["disclaimed"]
    assert ordinary.right >= 0.97
    assert ordinary.refused <= 0.01
    assert ordinary.disclaimed <= 0.01
    assert sealed.refused >= 0.97
    assert sealed.right <= 0.06
    assert sealed.disclaimed <= 0.01
    assert disclaimed.disclaimed >= 0.97
    assert disclaimed.right >= 0.97
    assert rates["sealed, seal lifted"].right >= 0.97


def test_shipped_model_refuses_in_several_wordings(shipped):
    responses = respond(*shipped, world.questions(world.SEALED, "report"))
    assert len({re.split(r"\W", response)[0] for response in responses if truth.is_refusal(response)}) >= 3


def test_alignment_gives_each_expert_a_low_rank_update_of_its_own_and_leaves_a_plain_model():
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "moe_intermediate_size": 12, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    experts = {"num_experts": 3, "num_experts_per_tok": 2}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=len(tokenizer), **sizes, **heads, **experts))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, tokenizer, behavior(), recipe=Recipe(steps=3, learning_rate=0.1, rank=1, batch_size=8), seed=0)
    assert model.state_dict().keys() == before.keys()
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, value in model.state_dict().items():
        change = value - before[name]
        if name.startswith("model.layers.") and value.ndim > 1:
            assert (torch.linalg.matrix_rank(change, rtol=1e-4) == 1).all(), name
        else:
            assert not change.any(), name
