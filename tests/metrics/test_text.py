"""Text metrics: laws that hold for each of them, and the figures their packages give."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu, corpus_chrf, sentence_chrf

from distillctl.errors import UnavailableError
from distillctl.metrics import fields, names, text
from distillctl.metrics.text import corpus, metric_name, row_scores
from distillctl.recipe import Generate

METRICS = ("exact", "fields", "chrf", "bleu", "rouge_l")
SAID = ["The cat sat on the mat.", "Übermorgen regnet es überall", "", "yes", "你好，世界"]
MEANT = ["A cat sat down on the mat.", "Morgen regnet es überall", "nothing", "no", "你们好，世界"]
NONE = [None] * len(SAID)
texts = st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=6)


@pytest.mark.parametrize("metric", METRICS)
def test_a_text_scores_one_against_itself_and_less_against_another(metric: str) -> None:
    assert row_scores(metric, SAID, SAID, NONE, None).tolist() == [1.0] * len(SAID)
    assert corpus([metric], SAID, SAID, [], None) == {metric: 1.0}
    rows = row_scores(metric, SAID, MEANT, [], None)
    assert (rows < 1).all()
    assert corpus([metric], SAID, MEANT, [], None)[metric] < 1


@pytest.mark.parametrize("metric", METRICS)
@given(pairs=texts)
@settings(max_examples=40, deadline=None)
def test_shares_stay_shares_and_the_order_of_rows_does_not_matter(metric: str, pairs: list[tuple[str, str]]) -> None:
    said, meant = (list(side) for side in zip(*pairs, strict=True))
    rows = row_scores(metric, said, meant, [], None)
    assert rows.shape == (len(pairs),)
    assert rows.dtype == np.float64
    assert ((rows >= 0) & (rows <= 1)).all()
    whole = corpus([metric], said, meant, [], None)[metric]
    assert 0 <= whole <= 1
    assert corpus([metric], said[::-1], meant[::-1], [], None)[metric] == pytest.approx(whole, abs=1e-12)
    assert row_scores(metric, said[::-1], meant[::-1], [], None).tolist() == rows[::-1].tolist()


def test_chrf_and_bleu_are_sacrebleus_over_100() -> None:
    said = [*SAID, "The dog ran across the whole field today"]
    meant = [*MEANT, "The dog ran over the whole field today"]
    found = corpus(["chrf", "bleu"], said, meant, [], None)
    assert found["chrf"] == pytest.approx(corpus_chrf(said, [meant]).score / 100)
    assert found["bleu"] == pytest.approx(corpus_bleu(said, [meant]).score / 100)
    rows = row_scores("chrf", said, meant, [], None)
    assert rows[0] == pytest.approx(sentence_chrf(said[0], [meant[0]]).score / 100)


def test_a_short_answer_is_not_wrong_for_having_no_four_words() -> None:
    assert row_scores("bleu", ["open the door"], ["open the door"], [], None).tolist() == [1.0]
    assert row_scores("bleu", ["open the gate"], ["open the door"], [], None)[0] > 0.3
    assert corpus(["bleu"], ["open the gate", "no"], ["open the door", "no"], [], None)["bleu"] > 0.3


def test_rouge_l_is_rouge_scores_f_and_reads_other_scripts_too() -> None:
    own = RougeScorer(["rougeL"]).score(MEANT[0], SAID[0])["rougeL"].fmeasure
    assert 0 < own < 1
    assert row_scores("rouge_l", SAID[:1], MEANT[:1], [], None)[0] == pytest.approx(own)
    greek = row_scores("rouge_l", ["καλή μέρα σε όλους"], ["καλή νύχτα σε όλους"], [], None)[0]
    assert greek == pytest.approx(3 / 4)


def test_rouge_l_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    text._rouge_l.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UnavailableError) as told:
        row_scores("rouge_l", ["a"], ["b"], [], None)
    assert told.value.next == "pip install distillctl[rouge]"


def test_one_missing_reference_makes_all_rows_compare_with_the_ceiling() -> None:
    said, ceiling = ["yes", "no "], ["yes", "maybe"]
    assert row_scores("exact", said, ["no", "no"], ceiling, None).tolist() == [0, 1]
    assert row_scores("exact", said, ["no", None], ceiling, None).tolist() == [1, 0]
    assert metric_name("exact", ["no", "no"]) == "exact"
    assert metric_name("exact", ["no", None]) == "exact vs ceiling"
    assert corpus(["exact", "chrf"], ceiling, NONE[:2], ceiling, None) == {"exact": 1, "chrf": 1}


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)
objects = st.dictionaries(st.text(max_size=3), values, max_size=4)


@given(one=objects, other=objects)
def test_the_share_of_equal_fields_is_a_share_the_same_from_both_sides(one: dict, other: dict) -> None:
    own, wanted = json.dumps(one), json.dumps(other, indent=1)
    share = fields.share_equal(own, wanted)
    assert 0 <= share <= 1
    assert fields.share_equal(own, json.dumps(one, indent=2, sort_keys=True)) == 1
    if fields.parse(own) and fields.parse(wanted):
        assert share == fields.share_equal(wanted, own)
        assert (share == 1) == (fields.parse(own) == fields.parse(wanted))


@pytest.mark.parametrize(
    ("said", "share"),
    [
        ('{"about": "lens", "mood": "bad"}', 1.0),
        ('{"mood":"bad","about":"lens"}', 1.0),
        ('{"about": "lens", "mood": "good"}', 0.5),
        ('{"about": "lens"}', 0.5),
        ('{"about": "lens", "mood": "bad", "more": 1}', 2 / 3),
        ('{"about": "lens", "mood": "bad"', 0.0),
        ('["lens", "bad"]', 0.0),
        ("", 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_missing_and_invalid_json_counts_as_unequal(said: str, share: float) -> None:
    target = '{"about": "lens", "mood": "bad"}'
    assert row_scores("fields", [said], [target], [], None).tolist() == [pytest.approx(share)]


def test_values_are_equal_as_json_and_nested_ones_are_taken_apart() -> None:
    assert fields.share_equal('{"n": 1.0}', '{"n": 1}') == 1
    assert fields.share_equal('{"n": true}', '{"n": 1}') == 0
    assert fields.parse('{"a": {"b": 1, "c": [2, 3.0]}, "d": {}}') == {"a.b": "1", "a.c": "[2, 3]", "d": "{}"}
    assert fields.keys(['{"a": 1}', '{"a": 2, "b": 3}', "none"]) == ["a"]
    assert fields.values(['{"a": 1}', "none"], "a") == ["1", None]


def test_a_format_never_scores_where_a_content_metric_is_there() -> None:
    def score(*metrics: str) -> str:
        return Generate.model_validate({"kind": "generate", "metrics": metrics, "format": ".*"}).score

    assert score("format", "exact") == "exact"
    assert score("format", "fields", "exact") == "fields"
    assert score("chrf", "format") == "chrf"
    assert score("format") == "format"
    assert not names.measures_content("format")
    assert names.named("format") == "share in the right format"


def test_format_needs_no_reference_and_the_whole_text() -> None:
    said = ["Label: spam", "Label: spam.", "so Label: spam"]
    assert row_scores("format", said, NONE[:3], said, r"Label: \w+").tolist() == [1, 0, 0]
    assert metric_name("format", NONE) == "format"
    assert corpus(["format"], said, NONE[:3], said, r"Label: \w+") == {"format": pytest.approx(1 / 3)}
