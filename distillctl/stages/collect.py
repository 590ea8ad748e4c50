"""collect: the teacher's soft labels, under the full context and under every other arm's."""

from __future__ import annotations

from functools import partial

from distillctl import console, tasks
from distillctl.data import examples, responses, views
from distillctl.models import model_source
from distillctl.recipe import Recipe
from distillctl.run_dir.workspace import StageOutput, Workspace
from distillctl.soft_labels import shards
from distillctl.students import reading as student_lengths
from distillctl.teachers import arms as teacher_arms
from distillctl.teachers import worker_pools
from distillctl.teachers.shard_labeler import ShardLabeler


def run(recipe: Recipe, workspace: Workspace) -> StageOutput:
    """Have every arm's rows labelled shard by shard. Shards that are stored already are reused."""
    folder = workspace.folder("collect")
    dataset = examples.load(recipe, folder)
    responses.check_given(recipe, dataset)
    contexts = views.renderers(recipe, dataset.shots)
    source = model_source.teacher(recipe)
    task = tasks.of(recipe, workspace)
    with worker_pools.open_pool(recipe, source, folder) as pool:
        arms, dataset = teacher_arms.arms(
            pool.reader,
            dataset,
            contexts,
            task.requests(pool.reader),
            folder,
            scored=partial(views.scored_splits, recipe),
            student=student_lengths.measure(recipe),
            cut=recipe.contexts.truncate == "input",
        )
        fingerprint = source.fingerprint()
        collection = task.collection(pool.reader, dataset, arms, fingerprint)
        workspace.invalidate("collect")
        all_shards = [shard for todo in collection.rounds for shard in todo]
        with console.progress("collect", total=sum(len(shard.ids) for shard in all_shards)) as bar:
            loop = ShardLabeler(pool, collection.present, collection.commit, bar)
            for todo in collection.rounds:
                loop.label(todo, collection.request)
        viewed = teacher_arms.collect_facts(recipe, pool.reader, dataset, arms, fingerprint)
        labelled = collection.teacher_facts() | loop.facts
    shards.drop_others(folder, all_shards)
    findings = collection.findings()
    teacher_arms.write_views(folder, dataset, arms, findings.kept)
    if findings.kept is not None:
        rows = {split: int(kept.sum()) for split, kept in findings.kept.items()}
        viewed = viewed.model_copy(update={"counts": viewed.counts.model_copy(update=rows)})
    facts = findings.arms | findings.facts | viewed | labelled
    return StageOutput(outputs=["views.parquet", "shards", *findings.outputs], facts=facts)
