"""Every knob. One YAML file, closed (an unknown key is an error) and frozen; no heavy imports.

A spec that can be chosen by ``kind`` names its implementation in ``target``; `implementation` resolves it when used.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, TypeAdapter, ValidationError, model_validator

from distillctl.errors import RecipeError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Closed(BaseModel):
    """A recipe section: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Spec(Closed):
    """A section whose ``kind`` chooses an implementation."""

    target: ClassVar[str]


def implementation(spec: Spec) -> Callable[..., Any]:
    """The callable that ``spec.target`` names, imported only now."""
    module, _, name = spec.target.partition(":")
    resolved: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return resolved


# ── what is asked ────────────────────────────────────────────────────────────────────────────────


class Classify(Closed):
    """Choose one of several labels."""

    kind: Literal["classify"] = "classify"
    labels: dict[str, str]
    """Label name → the words the teacher would answer with; a plain list means name = words."""
    answer_prefix: str = " "
    """Put before the words when the teacher scores them; "" for chat messages."""
    prior: Literal["none", "batch"] = "none"
    """batch: divide by the mean label distribution over the train rows (Batch Calibration, Zhou et al. 2023)."""

    @model_validator(mode="before")
    @classmethod
    def _labels_as_mapping(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("labels"), list):
            if other := [name for name in values["labels"] if not isinstance(name, str)]:
                raise ValueError(f"the label {other[0]!r} is no text: put it in quotes")
            return {**values, "labels": {str(name): str(name) for name in values["labels"]}}
        return values

    @model_validator(mode="after")
    def _labels_differ(self) -> Classify:
        if len(self.labels) < 2:
            raise ValueError("needs at least two labels")
        if any(not words.strip() for words in self.labels.values()):
            raise ValueError("a label has no words")
        if len(set(self.labels.values())) < len(self.labels):
            raise ValueError("two labels have the same words")
        return self

    @property
    def names(self) -> list[str]:
        return list(self.labels)


# ── data ─────────────────────────────────────────────────────────────────────────────────────────


class Data(Closed):
    """Where the rows are. ``source`` is split by a seed; or name ``train`` and ``eval`` apart."""

    source: str | None = None
    """A file, `package:NAME/path`, or a hub data set id."""
    train: str | None = None
    """A file for the train split; with a hub `source`, the name of its train split."""
    eval: str | None = None
    format: Literal["auto", "lines", "jsonl", "csv", "tsv", "parquet", "hub"] = "auto"
    encoding: str = "utf-8"
    pattern: str | None = None
    """For `lines`: a regular expression whose named groups are the columns."""
    input: str = "input"
    """Column of the input."""
    reference: str | None = None
    """Column of the reference; when not given, `reference` is used if it is there."""
    id: str | None = None
    """Column of the id; derived from the input when not given."""
    documents: str | None = None
    """Column with the row's documents (text or a list), for the full context."""
    label_map: dict[str, str] = {}
    """Value of the reference column → label name."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Rows whose input was seen before, spaces aside."""
    train_rows: Count | None = None
    eval_rows: Count | None = None
    """Of a single `source`: so many rows are held out (default: a fifth)."""
    seed: int = 0

    @model_validator(mode="after")
    def _one_way(self) -> Data:
        if self.source is None and (self.train is None or self.eval is None):
            raise ValueError("give `source`, or both `train` and `eval`")
        if self.source is not None and (self.train is None) != (self.eval is None):
            raise ValueError("name both splits, `train` and `eval`, or neither")
        if self.source is not None and self.train is not None and self.format != "hub":
            raise ValueError("give `source`, or `train` and `eval`; with `format: hub` they name its splits")
        if self.pattern is not None:
            try:
                groups = re.compile(self.pattern).groupindex
            except re.error as error:
                raise ValueError(f"pattern is not a regular expression: {error}") from None
            if self.input not in groups:
                raise ValueError(f"pattern has no group (?P<{self.input}>…)")
        if self.format == "lines" and self.pattern is None:
            raise ValueError("format lines needs a `pattern`")
        return self


# ── contexts ─────────────────────────────────────────────────────────────────────────────────────


class Shot(Closed):
    """One few-shot example."""

    input: str
    answer: str


class Shots(Closed):
    """Few-shot examples for a context: inline rows, a file with `input` and `answer`, or rows of the train split."""

    rows: tuple[Shot, ...] = ()
    file: str | None = None
    train: Count | None = None
    """So many train rows with a reference, the labels in turn; they leave the train split."""
    seed: int = 0

    @model_validator(mode="after")
    def _one_source(self) -> Shots:
        if sum((bool(self.rows), self.file is not None, self.train is not None)) != 1:
            raise ValueError("give exactly one of rows, file, train")
        return self


class Message(Closed):
    """One chat message; its content is a template."""

    role: Literal["system", "user", "assistant"]
    content: str
    each: Literal["example", "document"] | None = None
    """Repeat the message for every example or document; neighbours with the same `each` repeat together."""


class Context(Closed):
    """What is put around the input: a sandboxed Jinja template (inline or a file), or chat messages.

    Variables: `input`, `examples` (each with `input`, `answer`), `documents`, `labels`.
    """

    template: str | None = None
    template_file: str | None = None
    messages: tuple[Message, ...] | None = None
    examples: Shots | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Context:
        if sum(v is not None for v in (self.template, self.template_file, self.messages)) != 1:
            raise ValueError("give exactly one of template, template_file, messages")
        return self


class Contexts(Closed):
    full: Context
    """What the teacher sees."""
    simplified: Context = Context(template="{{ input }}")
    """What the student sees, and the teacher for the floor."""
    arms: dict[str, Context] = {}
    """Further contexts for the teacher, scored beside the floor."""
    truncate: Literal["never", "input"] = "never"
    """A view that is too long: an error naming the row, or the end of its input is cut."""

    @model_validator(mode="after")
    def _names(self) -> Contexts:
        taken = {"full", "simplified", "ceiling", "floor", "student", "deployed", "control"} & set(self.arms)
        if taken:
            raise ValueError(f"arms: the name {sorted(taken)[0]} is taken")
        if bad := [name for name in self.arms if not re.fullmatch(r"[A-Za-z0-9_]+", name)]:
            raise ValueError(f"arms: {bad[0]!r} is not a plain name (letters, digits, _)")
        return self


# ── teacher and student ──────────────────────────────────────────────────────────────────────────


class HuggingFaceTeacher(Spec):
    """A causal language model run here by transformers."""

    target: ClassVar[str] = "distillctl.teachers.huggingface:load"

    kind: Literal["huggingface"] = "huggingface"
    model: str
    """Hub id, directory, `.gguf` file, or `package:NAME/path`."""
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    batch_tokens: Count = 640
    """Row tokens per forward pass, padding included; the shared context is not counted."""
    share_context: bool = True
    """Run what all rows have in common once and reuse its keys and values."""
    threads: Count | None = None


class PretrainedStudent(Spec):
    """A pretrained model with a fresh classification head."""

    target: ClassVar[str] = "distillctl.students.pretrained:build"

    kind: Literal["pretrained"] = "pretrained"
    model: str
    revision: str | None = None
    trust_remote_code: bool = False
    max_length: Count | None = None
    """Longest simplified view, in tokens (default: what the model allows)."""


class TruncatedStudent(PretrainedStudent):
    """Chosen layers of a larger pretrained model (as DistilBERT, Sanh et al. 2019)."""

    target: ClassVar[str] = "distillctl.students.truncated:build"

    kind: Literal["truncated"] = "truncated"  # type: ignore[assignment]
    layers: tuple[Annotated[int, Field(ge=0)], ...]

    @model_validator(mode="after")
    def _each_once(self) -> TruncatedStudent:
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError("name at least one layer, and each at most once")
        return self


class FromConfigStudent(Spec):
    """A new small model: an architecture, its sizes, and somebody's tokenizer."""

    target: ClassVar[str] = "distillctl.students.from_config:build"

    kind: Literal["from_config"] = "from_config"
    model_type: str
    """The transformers architecture, such as `bert`."""
    config: dict[str, Any] = {}
    """Sizes, by the architecture's own names."""
    tokenizer: str
    """A model reference whose tokenizer is used."""
    revision: str | None = None
    max_length: Count | None = None


Student = Annotated[PretrainedStudent | TruncatedStudent | FromConfigStudent, Field(discriminator="kind")]


# ── train ────────────────────────────────────────────────────────────────────────────────────────


class LossTerm(Spec):
    weight: Positive = 1.0
    temperature: Positive = 1.0
    """Applied to both sides; the KL family is multiplied by T² (Hinton et al. 2015)."""


class ForwardKL(LossTerm):
    target: ClassVar[str] = "distillctl.losses.divergences:forward_kl"
    kind: Literal["forward_kl"] = "forward_kl"


class ReverseKL(LossTerm):
    target: ClassVar[str] = "distillctl.losses.divergences:reverse_kl"
    kind: Literal["reverse_kl"] = "reverse_kl"


class JSD(LossTerm):
    target: ClassVar[str] = "distillctl.losses.divergences:jsd"
    kind: Literal["jsd"] = "jsd"
    beta: float = 0.5

    @model_validator(mode="after")
    def _open_interval(self) -> JSD:
        if not 0 < self.beta < 1:
            raise ValueError("beta must be inside (0, 1): at the ends jsd vanishes; use forward_kl or reverse_kl")
        return self


class CrossEntropy(LossTerm):
    """On the teacher's own top label."""

    target: ClassVar[str] = "distillctl.losses.divergences:cross_entropy"
    kind: Literal["cross_entropy"] = "cross_entropy"


Loss = Annotated[ForwardKL | ReverseKL | JSD | CrossEntropy, Field(discriminator="kind")]


class Train(Closed):
    loss: Annotated[tuple[Loss, ...], Field(min_length=1)] = (ForwardKL(),)
    epochs: Count = 4
    batch_rows: Count = 32
    batch_tokens: Count = 4096
    """Padded tokens of one batch at most."""
    accumulate: Count = 1
    """Batches per optimizer step."""
    learning_rate: Positive = 2e-4
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Fraction = 0.1
    """Share of the steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Positive = 1.0
    mixed_precision: Literal["no", "bf16"] = "no"
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the train rows held out for early stopping; the eval split is never looked at."""
    evaluate_every: Count | None = None
    """Steps between looks at the held-out KL (default: half an epoch)."""
    patience: Count = 4
    """Stop after so many looks without a better held-out KL; the best weights are kept."""
    checkpoint_every: Count = 100
    """Steps."""
    control: bool = False
    """Also train the same student on the teacher's hard labels."""
    threads: Count | None = None


# ── export, quantize, bench, report ──────────────────────────────────────────────────────────────


class Export(Closed):
    opset: Count | None = None
    max_logit_difference: Positive = 1e-4
    """Largest |Δlogit| between ONNX Runtime and PyTorch over the eval rows."""


class DynamicInt8(Spec):
    target: ClassVar[str] = "distillctl.quantizers.dynamic_int8:quantize"

    kind: Literal["dynamic_int8"] = "dynamic_int8"
    per_channel: bool = True
    reduce_range: bool = False
    """7-bit weights: for x86 without VNNI, where 8-bit products saturate."""

    @property
    def name(self) -> str:
        return "dynamic_int8" + "_per_channel" * self.per_channel + "_reduced_range" * self.reduce_range


class Gate(Closed):
    """What a candidate must hold, against the fp32 student on the held-out rows."""

    max_kl: Positive = 0.05
    """KL(fp32 student ‖ candidate), mean nats per row."""
    min_same_top: Fraction = 0.97
    """Share of rows with the fp32 student's top label."""
    max_score_drop: Fraction = 0.02
    """Of the score against references, when there are any."""


class Quantize(Closed):
    candidates: Annotated[tuple[DynamicInt8, ...], Field(min_length=1)] = (
        DynamicInt8(per_channel=False),
        DynamicInt8(per_channel=False, reduce_range=True),
        DynamicInt8(),
        DynamicInt8(reduce_range=True),
    )
    gate: Gate = Gate()


class Bench(Closed):
    threads: Count = 1
    queries: Count = 200
    """Timed queries per model, over all processes."""
    processes: Count = 3
    """Fresh processes per model."""
    warmup: Annotated[int, Field(ge=0)] = 5
    """Untimed queries per process."""
    max_seconds: Positive | None = None
    """Stop timing a model after so many seconds in all, with at least two queries per process."""


class Report(Closed):
    title: str | None = None
    disagreements: Annotated[int, Field(ge=0)] = 12
    """Rows shown where teacher and deployed student differ most."""


class Recipe(Closed):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: int = 0
    task: Classify
    data: Data
    contexts: Contexts
    teacher: HuggingFaceTeacher
    student: Student
    shard_rows: Count = 128
    """Rows of soft labels committed at a time by collect."""
    train: Train = Train()
    export: Export = Export()
    quantize: Quantize = Quantize()
    bench: Bench = Bench()
    report: Report = Report()

    _path: Path = PrivateAttr(default=Path("recipe.yaml"))
    _overrides: tuple[str, ...] = PrivateAttr(default=())

    @property
    def overrides(self) -> tuple[str, ...]:
        """The --set values it was loaded with."""
        return self._overrides

    @property
    def path(self) -> Path:
        """The file it was read from."""
        return self._path

    @property
    def folder(self) -> Path:
        """The recipe's folder; relative paths in it start here."""
        return self._path.parent


# ── loading ──────────────────────────────────────────────────────────────────────────────────────


class _UniqueKeys(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where PyYAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at ``path`` with ``key.path=value`` overrides; RecipeError names file, key and the nearest name."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError("no such recipe", where=str(path), next="distillctl init my-recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read: {error}", where=str(path)) from None
    tree = _parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise RecipeError("a recipe is a mapping of sections", where=str(path), next="distillctl init my-recipe")
    for override in overrides:
        _apply(tree, override)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_explain(error), where=str(path)) from None
    recipe._path, recipe._overrides = path, tuple(overrides)
    return recipe


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _UniqueKeys)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}:{mark.line + 1}" if mark else where
        raise RecipeError(f"not valid YAML: {error.problem}", where=place) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"not valid YAML: {error or type(error).__name__}", where=where) from None


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set ``a.b[0].c=value`` in ``tree``; the value is YAML, typed later by the schema."""
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise RecipeError("expected key.path=value", where=f"--set {override}")
    parts: list[str | int] = [int(p) if p.isdigit() else p for p in re.findall(r"[^.\[\]]+", key)]
    node: Any = tree
    part: Any
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        if isinstance(node, list) and (not isinstance(part, int) or part >= len(node)):
            raise RecipeError(f"no item {part} in a list of {len(node)}", where=f"--set {override}")
        if not isinstance(node, (dict, list)):
            raise RecipeError(f"{part}: its parent is not a section", where=f"--set {override}")
        if following is None:
            node[part] = _parse_yaml(value, f"--set {override}")
        else:
            if isinstance(node, dict) and node.get(part) is None:
                node[part] = {}
            node = node[part]


def _explain(error: ValidationError) -> str:
    """Every problem on its own line: path, what is wrong, the nearest name for an unknown key."""
    lines = []
    problems = error.errors(include_url=False)
    for problem in problems:
        if problem["type"] == "too_short" and len(problems) > 1:
            continue  # pydantic's echo of an item that failed by itself
        location = [part for part in problem["loc"] if not _is_union_tag(part)]
        path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).lstrip(".")
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown key" + _nearest(str(location[-1]), _known_keys(location[:-1]))
        elif problem["type"] == "missing":
            message = "is missing"
        lines.append(f"{path}: {message}" if path else message)
    return "\n".join(lines)


def _nearest(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f", did you mean {match[0]}?" if match else ""


def _is_union_tag(part: str | int) -> bool:
    """pydantic puts the chosen ``kind`` into the path of a union; it is no key of the recipe."""
    return part in _KINDS


def _specs(root: type[BaseModel] = Closed) -> Iterable[type[BaseModel]]:
    for cls in root.__subclasses__():
        yield cls
        yield from _specs(cls)


def _known_keys(location: list[str | int]) -> set[str]:
    """The field names that may stand at ``location``."""
    models: list[Any] = [Recipe]
    for part in location:
        if isinstance(part, int):
            continue
        found = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        models = [model for annotation in found for model in _models_in(annotation)]
    return {name for model in models for name in model.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for arg in getattr(annotation, "__args__", ()) for model in _models_in(arg)]


_KINDS = {cls.model_fields["kind"].default for cls in _specs() if "kind" in cls.model_fields}


def schema() -> dict[str, Any]:
    """JSON Schema of a recipe, for editors."""
    return TypeAdapter(Recipe).json_schema()


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested sections as ``{"a.b[0].c": leaf}``; used to say which knob changed."""
    if isinstance(tree, Mapping) and tree:
        items = [(f"{prefix}.{key}".lstrip("."), value) for key, value in tree.items()]
    elif isinstance(tree, list) and tree:
        items = [(f"{prefix}[{index}]", value) for index, value in enumerate(tree)]
    else:
        return {prefix: tree}
    return {path: leaf for key, value in items for path, leaf in flatten(value, key).items()}
