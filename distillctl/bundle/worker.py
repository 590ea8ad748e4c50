"""Run a bundle's graphs in a process with limits: ``python -m distillctl.bundle.worker``.

`verify` is the other end.

It reads JSON lines from stdin. The first one is the job: ``folder`` of a bundle whose files and manifest were verified,
``data_bytes`` and ``cpu_seconds`` (`distillctl.runtimes.trial`). Each further line ``{"graph": name}`` is answered with
``problem``: how the graph's answer differs from the recorded one, or null.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from pydantic_core import from_json

from distillctl.bundle import golden_example
from distillctl.bundle.manifest import NAME, BundleManifest, Graph
from distillctl.errors import first_line
from distillctl.runtimes import confined


def main() -> None:
    """Check each graph that stdin names against the bundle's example; answer one JSON line each."""
    replies = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # keep what libraries print out of the answers
    job = json.loads(sys.stdin.readline())
    folder = Path(job["folder"])
    confined.limit(job["data_bytes"], job["cpu_seconds"])
    manifest = BundleManifest.model_validate(from_json((folder / NAME).read_bytes()))
    replies.write("{}\n")
    for line in iter(sys.stdin.readline, ""):
        name = json.loads(line)["graph"]
        try:
            problem = _problem(folder, manifest, name, manifest.graphs[name])
        except Exception as error:  # ONNX Runtime's, the tokenizers' or Python's
            problem = f"does not open or run: {first_line(error)}"
        replies.write(json.dumps({"problem": problem}) + "\n")


def _problem(folder: Path, manifest: BundleManifest, name: str, graph: Graph) -> str | None:
    example = manifest.example
    if example.logits is not None:
        logits = golden_example.label_logits(folder, name, graph, example, manifest.max_length)
        return golden_example.difference(example, manifest.labels, logits)
    again = golden_example.written(folder, example.input, example.view, f".{graph.format}")
    if again.ids != example.ids:
        return f"reads the tokens {again.ids} instead of the recorded {example.ids}"
    if again.answer_ids != example.answer_ids:
        return f"answers {again.answer_ids} instead of the recorded {example.answer_ids}"
    return None


if __name__ == "__main__":
    main()
