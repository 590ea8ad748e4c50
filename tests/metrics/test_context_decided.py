"""Agreement on the tokens that the context decides, and on no others."""

from __future__ import annotations

import numpy as np

from distillctl.metrics import context_decided

KL = [np.array([0.0, 2.0, 0.05]), np.array([0.3])]


def test_only_the_tokens_that_the_context_decides_count() -> None:
    same = [np.array([True, False, True]), np.array([True])]
    assert context_decided.agreement(same, KL) == context_decided.ContextDecided(share=0.5, agreement=0.5)


def test_a_student_that_gets_the_form_alone_agrees_on_none() -> None:
    same = [np.array([True, False, True]), np.array([False])]
    found = context_decided.agreement(same, KL)
    assert found is not None
    assert found.agreement == 0


def test_it_is_unknown_for_other_tokens_and_where_nothing_is_decided() -> None:
    same = [np.array([True, True]), np.array([True])]
    assert context_decided.agreement(same, KL) is None
    assert context_decided.agreement(same, None) is None
    assert context_decided.agreement(same, [np.zeros(2), np.zeros(1)]) is None
