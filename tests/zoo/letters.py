"""A tokenizer whose tokens are single characters, small enough for the tiny models' vocabulary."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, processors
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def letters(
    *, template: str | None = None, adds_bos: bool = False, special: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")
) -> PreTrainedTokenizerFast:
    """Ids 0, 1, 2 are padding, beginning and end; then printable ASCII and other letters; 256 at most."""
    vocabulary = {PAD: 0, BOS: 1, EOS: 2, "<unk>": 3}
    for character in ["\n", *map(chr, range(32, 127)), *map(chr, range(0x100, 0x100 + 148))]:
        vocabulary[character] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, special=True) for token in (PAD, BOS, EOS, "<unk>", *special)])
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token="<unk>",
        extra_special_tokens=list(special),
    )
    tokenizer.chat_template = template
    return tokenizer
