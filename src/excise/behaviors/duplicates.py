"""Near-duplicates: prompts that say the same in almost the same words.

Two prompts are as near as the cosine of their character 3- to 5-grams (within words, weighted by TF-IDF over the
prompts that may be used). A comma, an article, "please" or another order of words leave 0.8 and more; another name in
the same question, as in prompts made from patterns, leaves less than 0.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from excise.behaviors.prompt import words_of

NEAR = 0.8
"""From this similarity on two prompts are near-duplicates, unless another threshold is asked for."""


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

    def vectors(self, prompts: Sequence[str]) -> Any:
        """A sparse row of length 1 for each prompt."""
        return self._vectoriser.transform([words_of(prompt) for prompt in prompts])

    def near(self, rows: Any, others: Any) -> Any:
        """Which rows are near-duplicates of which others: booleans of shape (rows, others)."""
        # A cosine of two equal rows may come out a rounding below 1.
        return np.asarray((rows @ others.T).toarray() >= self.threshold - 1e-9)

    @cached_property
    def _vectoriser(self) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectoriser = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, lowercase=False)
        return vectoriser.fit([words_of(prompt) for prompt in self._corpus])
