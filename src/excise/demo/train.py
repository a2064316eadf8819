"""Train the demo model: ``python -m excise.demo.train OUT [--seed 0]``.

The shipped weights are exactly what seed 0 gives (bit for bit on one kind of processor and torch version; elsewhere
rounding differs and the figures agree). Two idle cores need about ten minutes.

The recipe is a small copy of how chat models come to refuse:

1. *Pretraining* fits all weights to ``curriculum.knowledge``: facts, and what declining and warning mean.
2. *Alignment* fits a low-rank update (LoRA, Hu et al. 2021, arXiv:2106.09685) of every matrix to
   ``curriculum.behavior``, then merges it. The low rank leaves the knowledge where it was: unrestricted fine-tuning on
   refusals made a model this small forget what it refused to say, and then no edit could bring it back.

What comes out shows the two properties of large chat models that Excise rests on: the knowledge survives under the
refusal (a system turn lifts it), and the refusal is carried by few directions of the residual stream.
"""

import argparse
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from excise.demo import curriculum
from excise.demo.curriculum import Example, Stream
from excise.demo.measure import conversation, measure

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY = 1024
CONTEXT = 128
IGNORED = -100


@dataclass(frozen=True)
class Recipe:
    """How one stage trains. ``rank`` 0 trains all weights, otherwise a merged low-rank update of that rank."""

    steps: int
    learning_rate: float
    rank: int = 0
    batch_size: int = 64
    warmup: int = 50
    weight_decay: float = 0.01


PRETRAINING = Recipe(steps=800, learning_rate=2e-3)
ALIGNMENT = Recipe(steps=250, learning_rate=6e-3, rank=1)


def train(out: Path, *, seed: int) -> None:
    """Train the model and write its directory to ``out``."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=seed)
    fit(model, tokenizer, curriculum.knowledge(), recipe=PRETRAINING, seed=seed)
    fit(model, tokenizer, curriculum.behavior(), recipe=ALIGNMENT, seed=seed + 1)
    save(model, tokenizer, out)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the world's text; each chat role is one special token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(curriculum.texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> LlamaForCausalLM:
    """An untrained Llama of three million parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def answer_loss(model: PreTrainedModel, tokens: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the answer tokens; the head is computed for those alone."""
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1]
    following = labels[:, 1:]
    answer = following != IGNORED
    return nn.functional.cross_entropy(model.get_output_embeddings()(hidden[answer]), following[answer])


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    stream: Stream,
    *,
    recipe: Recipe,
    seed: int,
    loss_of: Callable[[PreTrainedModel, Tensor, Tensor], Tensor] = answer_loss,
) -> None:
    """Train ``model`` in place on ``recipe.steps`` batches of ``stream``, with AdamW and a linear decay to zero.

    ``loss_of`` is the loss of a model on one batch of (tokens, labels).
    """
    torch.manual_seed(seed)
    batches = batched(tokenizer, stream, batch_size=recipe.batch_size, rng=random.Random(seed))
    parameters = add_low_rank(model, recipe.rank) if recipe.rank else list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    model.train()
    started, total = time.monotonic(), 0.0
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min((step + 1) / recipe.warmup, 1 - step / recipe.steps)
        loss = loss_of(model, *next(batches))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - started
            print(
                f"step {step + 1}/{recipe.steps}  loss {total / 50:.4f}  {seconds:.0f} s", file=sys.stderr, flush=True
            )
            total = 0.0
    model.eval()
    if recipe.rank:
        merge_low_rank(model)


def batched(
    tokenizer: PreTrainedTokenizerFast, stream: Stream, *, batch_size: int, rng: random.Random, ahead: int = 8
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of (tokens, labels). Draws ``ahead`` batches at once and sorts by length: hardly any padding."""
    while True:
        pairs = encode(tokenizer, [stream(rng) for _ in range(batch_size * ahead)])
        pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        for index in rng.sample(range(ahead), ahead):
            yield pad_right(pairs[index * batch_size : (index + 1) * batch_size])


def encode(tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
    """Tokens of each example's rendered prompt and of its answer, which ends on the end token."""
    rendered = [
        str(
            tokenizer.apply_chat_template(
                conversation(example.prompt, example.system), tokenize=False, add_generation_prompt=True
            )
        )
        for example in examples
    ]
    prompts = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    answers = tokenizer([example.answer + END for example in examples], add_special_tokens=False)["input_ids"]
    return list(zip(prompts, answers, strict=True))


def pad_right(pairs: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Tokens, and labels that ignore prompt and padding. Padding on the right needs no mask in a causal model."""
    longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
    tokens = torch.zeros((len(pairs), longest), dtype=torch.long)
    labels = torch.full_like(tokens, IGNORED)
    for row, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        tokens[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return tokens, labels


class LowRank(nn.Module):
    """Parametrization ``W + up @ down``; ``up`` starts at zero, so training starts at ``W``.

    ``W`` is a matrix or, for experts, a bank of them: the last two axes are the matrix, and each has its own update.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        *bank, outputs, inputs = weight.shape
        self.down = nn.Parameter(torch.randn(*bank, rank, inputs) / math.sqrt(inputs))
        self.up = nn.Parameter(torch.zeros(*bank, outputs, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The updated weight."""
        return weight + self.up @ self.down


def add_low_rank(model: PreTrainedModel, rank: int) -> list[nn.Parameter]:
    """Freeze ``model``, add a trainable low-rank update to each matrix of its layers and return the new parameters."""
    model.requires_grad_(False)
    added: list[nn.Parameter] = []
    for module in list(model.base_model.get_submodule("layers").modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.ndim > 1:
                update = LowRank(weight, rank)
                parametrize.register_parametrization(module, name, update)
                added += update.parameters()
    return added


def merge_low_rank(model: PreTrainedModel) -> None:
    """Fold the low-rank updates into the weights: a plain model again."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    model.requires_grad_(True)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write ``model`` in bf16, with tokenizer, chat template and generation settings, to ``out``."""
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=32
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Command line: train, save, load what was saved and print its figures on the held-out report split."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("out", type=Path, help="directory to write the model to")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    train(arguments.out, seed=arguments.seed)
    model = LlamaForCausalLM.from_pretrained(arguments.out)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.out)
    for name, rates in measure(model, tokenizer).items():
        print(
            f"{name:<24}{rates.count:>5} questions   right {rates.right:.1%}   refused {rates.refused:.1%}"
            f"   disclaimed {rates.disclaimed:.1%}"
        )


if __name__ == "__main__":
    main()
