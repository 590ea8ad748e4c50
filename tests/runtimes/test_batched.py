"""Texts that are decoded together get the answers they get alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from distillctl.runtimes import batched
from distillctl.runtimes.genai import GenaiDecoder
from tests.fixtures import exported_generate, tiny_generate

pytestmark = pytest.mark.slow

NEW = 12
TEXTS = [" ".join(tiny_generate.texts(1 + place % 3, seed=place)) for place in range(9)]
"""Of different lengths."""


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph whose answers end after different numbers of tokens: at a token that one of them has in its middle."""
    folder = shutil.copytree(
        exported_generate.exported(request.param, "genai").folder, tmp_path_factory.mktemp("g") / "g"
    )
    decoder = GenaiDecoder(folder)
    answers = [list(decoder.stream(decoder.encode(text), NEW)) for text in TEXTS]
    ends = next(token for token in answers[0][3:] if any(token not in answer for answer in answers))
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["eos_token_id"] = [ends]
    (folder / "genai_config.json").write_text(json.dumps(config))
    return folder


def test_a_text_gets_the_same_answer_in_every_company(folder: Path) -> None:
    decoder = GenaiDecoder(folder)
    [stop] = json.loads((folder / "genai_config.json").read_text())["model"]["eos_token_id"]
    views = [decoder.encode(text) for text in TEXTS]
    assert len({len(view) for view in views}) > 1
    alone = [[token for token in decoder.stream(view, NEW) if token != stop] for view in views]
    assert len({len(answer) for answer in alone}) > 1
    assert decoder.generate_together(views, NEW) == alone
    assert decoder.generate_together(views[::-1], NEW) == alone[::-1]
    for place in range(len(views)):
        assert decoder.generate_together(views[place : place + 2], NEW) == alone[place : place + 2]


def test_both_ways_answer_the_same_texts() -> None:
    folder = exported_generate.exported("llama", "genai").folder
    job = {"runtime": "genai", "folder": str(folder), "threads": 1, "cpus": None, "texts": TEXTS}
    job |= {"max_view": None, "begin": [], "limit": NEW, "answer_tokens": NEW}
    found = batched.measure(job, 2)
    assert (found.batch, found.texts, found.same_answers) == (2, 2 * batched.GROUPS, 1.0)
    assert found.ratio > 0
    assert found.texts_per_second_together > 0
