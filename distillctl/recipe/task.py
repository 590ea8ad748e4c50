"""What is asked: a label, or a text."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from distillctl.recipe.base import Closed, Count, Fraction, NotText, Positive, Spec
from distillctl.untrusted import limits


class Classify(Closed):
    """Choose one of several labels."""

    kind: Literal["classify"] = "classify"
    labels: dict[str, str]
    """Label name → the words the teacher would answer with; a plain list means name = words."""
    answer_prefix: str | None = None
    """Put before the words when the teacher scores them, in every context. Left out, each context has its own: what its
    examples or its chat template have there, else a space after a template and nothing in a chat."""
    prior: Literal["none", "batch"] = "none"
    """batch: divide by the mean label distribution over the train rows (Batch Calibration, Zhou et al. 2023)."""

    @model_validator(mode="before")
    @classmethod
    def _labels_as_mapping(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("labels"), list):
            names = values["labels"]
            for index, name in enumerate(names):
                if not isinstance(name, str):
                    raise NotText(name, "labels", index)
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ValueError(f"the label {twice!r} is listed twice")
            return {**values, "labels": {name: name for name in names}}
        return values

    @model_validator(mode="after")
    def _labels_differ(self) -> Classify:
        if len(self.labels) < 2:
            raise ValueError("needs at least two labels")
        if any(not words.strip() for words in self.labels.values()):
            raise ValueError("a label has no words")
        for name, words in self.labels.items():
            if other := next((text for text in (name, words) if text != text.strip()), None):
                raise ValueError(
                    f"the label {other!r} has white space around it: leave it out (what stands before the words is "
                    "task.answer_prefix)"
                )
        if len(set(self.labels.values())) < len(self.labels):
            raise ValueError("two labels have the same words")
        return self

    @property
    def names(self) -> list[str]:
        return list(self.labels)


# ── text ─────────────────────────────────────────────────────────────────────────────────────────


class Greedy(Closed):
    """The teacher's most likely token at each step."""

    kind: Literal["greedy"] = "greedy"


class Sampling(Closed):
    """Several responses drawn for each train row; the eval rows are always answered greedily."""

    kind: Literal["sampling"] = "sampling"
    n: Count = 1
    """Responses per row."""
    temperature: Positive = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0


class Given(Closed):
    """The train rows' references are their responses; the teacher only says how likely each token is."""

    kind: Literal["given"] = "given"


Responses = Annotated[Greedy | Sampling | Given, Field(discriminator="kind")]


class TopK(Spec):
    """The k likeliest tokens at each position, the mass of all others, and some of these, drawn."""

    target: ClassVar[str] = "distillctl.soft_labels.top_k:TopKLabels"
    kind: Literal["top_k"] = "top_k"
    k: Count = 32
    temperatures: tuple[Positive, ...] = ()
    """Other than 1, that losses may use: a lumped tail cannot be re-tempered later."""
    tail_draws: Annotated[int, Field(ge=0)] = 50
    """So many tokens are drawn, and those kept that are not among the k: few where the k have nearly all the mass. From
    them forward_kl learns what is in the tail, and without (0) only how much."""


class Sampled(Spec):
    """Tokens drawn from the distribution, with importance weights (Anshumann et al. 2025, "Sparse Logit Sampling")."""

    target: ClassVar[str] = "distillctl.soft_labels.sampled:SampledLabels"
    kind: Literal["sampled"] = "sampled"
    draws: Count = 50
    exponent: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Drawn from R ∝ P^exponent."""


class Dense(Spec):
    """The whole distribution: for tests and small vocabularies."""

    target: ClassVar[str] = "distillctl.soft_labels.dense:DenseLabels"
    kind: Literal["dense"] = "dense"


class Text(Spec):
    """The response alone (sequence-level distillation, Kim & Rush 2016)."""

    target: ClassVar[str] = "distillctl.soft_labels.text:TextLabels"
    kind: Literal["text"] = "text"


SoftLabels = Annotated[TopK | Sampled | Dense | Text, Field(discriminator="kind")]


class Measured(Spec):
    """What is kept of the eval rows instead of `top_k` or `sampled`: so much that KL is exact. No recipe names it."""

    target: ClassVar[str] = "distillctl.soft_labels.eval_rows:EvalLabels"
    least: Count = 4096
    """So many tokens are named at each position, if the vocabulary has them,"""
    most: Count = 32_768
    """and so many at most;"""
    rest: Fraction = 5e-4
    """in between as many as leave no more than this mass unnamed,"""
    draws: Count = 512
    """of which so many tokens are drawn."""


Metric = Literal["format", "fields", "exact", "chrf", "bleu", "rouge_l"]


class FieldReference(Closed):
    """What a column of the data says of one value of an answer in JSON."""

    column: str
    values: dict[str, str] = {}
    """Cell, or a comparison such as "> 0.5" → the value it asks for. The first that holds counts, and a row with
    none is left out; without any, the cell is the value."""

    @model_validator(mode="before")
    @classmethod
    def _column_alone(cls, value: Any) -> Any:
        if not isinstance(value, (str, dict, FieldReference)):
            raise NotText(value)
        return {"column": value} if isinstance(value, str) else value


class Generate(Closed):
    """Answer with text."""

    kind: Literal["generate"]
    responses: Responses = Greedy()
    soft_labels: SoftLabels = TopK()
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """A response ends at the first token that contains one of these, or at the model's own end token."""
    max_new_tokens: Count = 128
    """A response that is longer is cut off there; collect counts those."""
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)] = ("chrf",)
    """The first that is not `format` scores the arms: a right format says nothing about the content. All but `format`
    compare with the references, or without them with the ceiling. `fields`: the share of equal values in JSON."""
    format: str | None = None
    """For the metric `format`: the regular expression that the whole response has to match."""

    fields: dict[str, FieldReference] = {}
    """For the metric `fields`: key of the answers' JSON → the column that holds its reference. A nested key is named by
    its path, `a.b`."""

    @model_validator(mode="after")
    def _fields_are_measured(self) -> Generate:
        if self.fields and "fields" not in self.metrics:
            raise ValueError("the key `fields` needs the metric `fields`")
        return self

    @model_validator(mode="after")
    def _format_is_there(self) -> Generate:
        if ("format" in self.metrics) != (self.format is not None):
            raise ValueError("the metric `format` and the key `format` (a regular expression) go together")
        try:
            limits.pattern(self.format or "")
        except ValueError as error:
            raise ValueError(f"format is not a regular expression: {error}") from None
        return self

    def kept(self, split: str, *, served: bool = False) -> TopK | Sampled | Dense | Text | Measured:
        """What is kept of the teacher's distributions in a split; a server shows no whole ones."""
        kept = self.soft_labels
        return Measured() if split == "eval" and not served and isinstance(kept, TopK | Sampled) else kept

    @property
    def score(self) -> Metric:
        """The metric that scores the arms: the first that measures content, and `format` only where it is alone."""
        return next((metric for metric in self.metrics if metric != "format"), "format")

    @property
    def names(self) -> list[str]:
        """No labels: what templates see as `labels`."""
        return []


def _task_kind(value: Any) -> str:
    kind = value.get("kind", "classify") if isinstance(value, dict) else getattr(value, "kind", "classify")
    return str(kind)


Task = Annotated[Annotated[Classify, Tag("classify")] | Annotated[Generate, Tag("generate")], Discriminator(_task_kind)]
