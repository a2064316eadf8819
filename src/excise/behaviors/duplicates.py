"""Near-duplicates: prompts that say the same in almost the same words.

Two prompts are as near as the cosine of their character 3- to 5-grams (within words, weighted by TF-IDF over the
prompts that may be used). A comma, an article, "please" or another order of words leave 0.8 and more; another name in
the same question, as in prompts made from patterns, leaves less than 0.7. Prompts that differ in a number are never
near-duplicates.
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


_WITH_DIGITS = re.compile(r"\w*\d\w*")


@dataclass(frozen=True)
class Vectors:
    """Prompts as they are compared.

    rows     a sparse matrix with a row of length 1 for each
    numbers  a hash of the words with digits in each, of shape (prompts,)
    """

    rows: Any
    numbers: Any

    def take(self, indices: Sequence[int]) -> Vectors:
        """Those of some prompts."""
        return Vectors(self.rows[list(indices)], self.numbers[list(indices)])

    def and_then(self, more: Vectors) -> Vectors:
        """These, and more after them."""
        from scipy.sparse import vstack

        return Vectors(vstack([self.rows, more.rows], format="csr"), np.concatenate([self.numbers, more.numbers]))


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
        words = [words_of(prompt) for prompt in prompts]
        numbers = [hash(tuple(sorted(_WITH_DIGITS.findall(text)))) for text in words]
        return Vectors(self._vectoriser.transform(words), np.array(numbers, dtype=np.int64))

    def near(self, some: Vectors, others: Vectors) -> Any:
        """Which of some prompts are near-duplicates of which others: booleans of shape (some, others)."""
        # A cosine of two equal rows may come out a rounding below 1.
        alike = (some.rows @ others.rows.T).toarray() >= self.threshold - 1e-9
        return np.asarray(alike & (some.numbers[:, None] == others.numbers[None, :]))

    @cached_property
    def _vectoriser(self) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectoriser = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, lowercase=False)
        return vectoriser.fit([words_of(prompt) for prompt in self._corpus])
