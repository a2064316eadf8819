"""Near-duplicates: prompts that say the same in almost the same words.

Two prompts are as near as the larger of two numbers: the cosine of their character 3- to 5-grams (within words,
weighted by TF-IDF over the prompts that may be used); and, where one holds all words of the other, the share of its
words that these are. An article, "please", a typing error or another order of words leave 0.8 and more; another name in
the same question, as in prompts made from patterns, leaves less than 0.7. Punctuation makes no difference. Prompts that
differ in a number are never near-duplicates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from excise.behaviors.prompt import words_of

NEAR = 0.8
"""From this similarity on two prompts are near-duplicates, unless another threshold is asked for."""


_WORDS = re.compile(r"\w+")
_WITH_DIGITS = re.compile(r"\w*\d\w*")


@dataclass(frozen=True)
class Vectors:
    """Prompts as they are compared.

    grams    a sparse matrix with a row of length 1 for each
    words    a sparse matrix that says which words each holds
    numbers  a hash of the words with digits in each, of shape (prompts,)
    """

    grams: Any
    words: Any
    numbers: Any

    def take(self, indices: Sequence[int]) -> Vectors:
        """Those of some prompts."""
        chosen = list(indices)
        return Vectors(self.grams[chosen], self.words[chosen], self.numbers[chosen])

    def and_then(self, more: Vectors) -> Vectors:
        """These, and more after them."""
        from scipy.sparse import vstack

        grams, words = (vstack(pair, format="csr") for pair in ((self.grams, more.grams), (self.words, more.words)))
        return Vectors(grams, words, np.concatenate([self.numbers, more.numbers]))


class Similarity:
    """How near prompts are to each other. `corpus` are the prompts that weigh rare against common n-grams.

    threshold  from this similarity on two prompts are near-duplicates; 0: nothing is one
    """

    def __init__(self, corpus: Sequence[str], threshold: float = NEAR) -> None:
        self._corpus = corpus
        self.threshold = threshold

    @property
    def on(self) -> bool:
        """Whether anything can be a near-duplicate."""
        return self.threshold > 0 and bool(self._corpus)

    def vectors(self, prompts: Sequence[str]) -> Vectors:
        """Prompts ready to be compared."""
        from sklearn.feature_extraction.text import HashingVectorizer

        texts = [_plain(prompt) for prompt in prompts]
        numbers = [hash(tuple(sorted(_WITH_DIGITS.findall(text)))) for text in texts]
        words = HashingVectorizer(token_pattern=r"\w+", binary=True, norm=None, alternate_sign=False)
        return Vectors(self._vectoriser.transform(texts), words.transform(texts), np.array(numbers, dtype=np.int64))

    def near(self, some: Vectors, others: Vectors) -> Any:
        """Which of some prompts are near-duplicates of which others: booleans of shape (some, others)."""
        cosine = (some.grams @ others.grams.T).toarray()
        shared = (some.words @ others.words.T).toarray()
        one, other = some.words.sum(axis=1).A1[:, None], others.words.sum(axis=1).A1[None, :]
        holds_all = shared == np.minimum(one, other)
        similarity = np.maximum(cosine, np.where(holds_all, shared / np.maximum(np.maximum(one, other), 1), 0.0))
        # A cosine of two equal rows may come out a rounding below 1.
        return np.asarray((similarity >= self.threshold - 1e-9) & (some.numbers[:, None] == others.numbers[None, :]))

    @cached_property
    def _vectoriser(self) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectoriser = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, lowercase=False)
        return vectoriser.fit([_plain(prompt) for prompt in self._corpus])


def _plain(prompt: str) -> str:
    """The words alone: punctuation makes no difference."""
    return " ".join(_WORDS.findall(words_of(prompt)))
