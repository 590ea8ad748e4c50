"""The precision of training: what the recipe says, or what the device is fast at."""

from __future__ import annotations

import pytest
import torch

from distillctl.recipe import Train
from distillctl.training import precision


@pytest.mark.parametrize(
    ("asked", "has_instructions", "expected"),
    [("auto", False, "no"), ("auto", True, "bf16"), ("bf16", False, "bf16"), ("no", True, "no")],
)
def test_auto_is_bfloat16_where_the_processor_multiplies_it(monkeypatch, asked, has_instructions, expected):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_instructions)
    assert precision.chosen(Train(mixed_precision=asked)) == expected
