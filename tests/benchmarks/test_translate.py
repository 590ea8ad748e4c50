"""make bench-translate: what its processes answer, and how its ratios are formed."""

from __future__ import annotations

import numpy as np
import pytest

from distillctl.data.responses import clean
from tests.benchmarks.translate import Translator, latency
from tests.fixtures import exported_generate, tiny_generate

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("kind", ["student", "beams"])
def test_a_process_answers_as_the_graph_does_and_says_what_it_took(kind: str) -> None:
    exported = exported_generate.exported("llama", "genai")
    graph, stop = exported.open(), " a"
    with Translator(kind, str(exported.folder), "12", stop) as process:
        for text in tiny_generate.texts(3):
            answer, milliseconds = process.translate(text)
            assert milliseconds > 0
            assert stop not in answer
            if kind == "student":
                assert answer == clean(graph.decode(graph.generate(graph.encode(text), 12)), [stop])
        assert process.peak_bytes() > 10_000_000


def test_ratios_are_of_medians_in_the_same_round() -> None:
    own = np.array([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0], [1.0, 2.0, 3.0]])
    found = latency(own, own / 4)
    assert found["times_peer_p50"] == pytest.approx(4)
    assert found["p50_ms"] == 20  # a row's time is the median of the rounds: 10, 20 and 30
