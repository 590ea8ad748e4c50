"""make bench-vocabulary: what trimming the vocabulary saves of the teacher's model, and whether it then says the same.

The vocabulary is trimmed as a student's is (`students.vocabulary`), to what the recipe's rows and answers need and the
safety set; here the full context counts as well. The trimmed model answers the eval rows greedily under that context,
and its answers are compared, token for token, with those that collect has from the whole model. Prints a table, then
one JSON object.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from distillctl import console
from distillctl import recipe as recipes
from distillctl.data import view_table
from distillctl.data.views import CEILING
from distillctl.models import model_source
from distillctl.recipe import HuggingFaceTeacher, Recipe, Text, TrimmedVocabulary
from distillctl.run_dir.workspace import Workspace
from distillctl.soft_labels import response_shards as store
from distillctl.soft_labels.text import TextLabels
from distillctl.students import vocabulary
from distillctl.students.student import Corpus
from distillctl.teachers import generation, huggingface
from distillctl.teachers.shared_context import SharedContext, common_prefix


def main(path: str, run_dir: str) -> None:
    """Benchmark the recipe's ``student.vocabulary`` on its teacher, with what collect has left in ``run_dir``."""
    recipe, workspace = recipes.load(Path(path)), Workspace(Path(run_dir))
    spec = getattr(recipe.student, "vocabulary", None) or TrimmedVocabulary()
    corpora, views, said = _collected(recipe, workspace)
    assert isinstance(recipe.teacher, HuggingFaceTeacher)  # the one kind whose tensors are here
    teacher = huggingface.load(recipe.teacher, model_source.teacher(recipe))
    chat = recipe.contexts.full.messages is not None
    encoded = [teacher.encode(view, chat=chat) for view in views]
    stop = teacher.stop_ids(recipe.generate.stop)
    before = 4 * teacher.model.num_parameters()
    _, kept, facts = vocabulary.trim(teacher.model, teacher.tokenizer, spec, corpora)

    new = np.full(facts.tokens_before, -1)
    new[kept] = np.arange(len(kept))
    trimmed = [new[view].tolist() for view in encoded]
    shared = common_prefix(trimmed)
    found = generation.generate(
        teacher.model,
        [view[shared:] for view in trimmed],
        stop=[int(new[token]) for token in stop if new[token] >= 0],
        max_new_tokens=recipe.generate.max_new_tokens,
        batch_tokens=recipe.teacher.batch_tokens,
        context=SharedContext(teacher.model, trimmed[0][:shared]),
    )
    answers = [kept[one.token_ids].tolist() for [one] in found]
    equal = sum(answer == whole for answer, whole in zip(answers, said, strict=True))
    after = before - facts.bytes_saved
    console.text(f"tokens  {facts.tokens_before:>10,} → {facts.tokens_after:,}")
    console.text(f"bytes   {before / 1e6:>7.1f} MB → {after / 1e6:.1f} MB, {facts.share_saved:.1%} saved (float32)")
    console.text(f"answers {equal:>10,} of {len(said):,} eval rows the same, token for token")
    figures = {"equal_answers": equal, "rows": len(said), "bytes": before, "trimmed_bytes": after}
    keys = {"tokens_before", "tokens_after", "share_saved"}
    console.text(json.dumps(figures | facts.model_dump(include=keys)))


def _collected(recipe: Recipe, workspace: Workspace) -> tuple[Corpus, list[str], list[list[int]]]:
    """What the vocabulary has to cover, and of the eval rows the full views and the teacher's greedy answers."""
    found = {}
    for split in ("train", "eval"):
        table = view_table.read(workspace.folder("collect") / "views.parquet", split)
        answers = store.read(workspace, CEILING, split, TextLabels(Text()))
        found[split] = table.full, [ids.tolist() for ids in answers.token_ids]
    views, said = found["eval"]
    return Corpus(*found["train"], held_out=Corpus(views, said)), views, said


if __name__ == "__main__":
    main(*sys.argv[1:])
