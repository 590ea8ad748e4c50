"""TF-IDF of word and character n-grams, as sparse rows of length 1."""

from __future__ import annotations

from collections.abc import Sequence

from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import FeatureUnion
from sklearn.preprocessing import normalize

_WORDS = r"(?u)\b\w+\b|[^\w\s]"
"""Words of any length, and punctuation: a short question hangs on both."""


class Features:
    """Words in ones and twos, characters within words in twos to fives; the most frequent ``most`` of each kind."""

    def __init__(self, most: int) -> None:
        self._union = FeatureUnion(
            [
                (
                    "words",
                    TfidfVectorizer(token_pattern=_WORDS, ngram_range=(1, 2), max_features=most, sublinear_tf=True),
                ),
                (
                    "characters",
                    TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), max_features=most, sublinear_tf=True),
                ),
            ]
        )

    def fit(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """Learn the n-grams of some texts; their features [N, F]."""
        return normalize(self._union.fit_transform(texts))

    def __call__(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """The features of other texts [N, F]; an n-gram that was not learnt is left out."""
        return normalize(self._union.transform(texts))
