"""Texts that are decoded together get the answers they get alone."""

from __future__ import annotations

import pytest

from distillctl.runtimes import batched
from distillctl.runtimes.genai import GenaiDecoder
from tests.fixtures import exported_generate, tiny_generate

pytestmark = pytest.mark.slow

NEW = 12
TEXTS = [" ".join(tiny_generate.texts(1 + place % 3, seed=place)) for place in range(9)]
"""Of different lengths."""


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def decoder(request: pytest.FixtureRequest) -> GenaiDecoder:
    return GenaiDecoder(exported_generate.exported(request.param, "genai").folder)


def test_a_text_gets_the_same_answer_in_every_company(decoder: GenaiDecoder) -> None:
    views = [decoder.encode(text) for text in TEXTS]
    assert len({len(view) for view in views}) > 1
    alone = [list(decoder.stream(view, NEW)) for view in views]
    assert decoder.generate_together(views, NEW) == alone
    assert decoder.generate_together(views[::-1], NEW) == alone[::-1]
    assert decoder.generate_together(views[2:4], NEW) == alone[2:4]
    assert decoder.generate_together(views[:1], NEW) == alone[:1]


def test_both_ways_answer_the_same_texts() -> None:
    folder = exported_generate.exported("llama", "genai").folder
    job = {"runtime": "genai", "folder": str(folder), "threads": 1, "cpus": None, "texts": TEXTS}
    job |= {"max_view": None, "begin": [], "limit": NEW, "answer_tokens": NEW}
    found = batched.measure(job, 2)
    assert (found.batch, found.texts, found.same_answers) == (2, 2 * batched.GROUPS, 1.0)
    assert found.ratio > 0
    assert found.texts_per_second_together > 0
