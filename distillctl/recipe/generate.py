"""`task.kind: generate`: answer with text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from distillctl.errors import DataError
from distillctl.recipe.base import Count, Fraction, NotText, Positive, Section, Spec
from distillctl.recipe.task_section import TaskSection
from distillctl.untrusted import limits


class Greedy(Section):
    """The teacher's most likely token at each step."""

    kind: Literal["greedy"] = "greedy"


class Sampling(Section):
    """Several responses drawn for each train row; the eval rows are always answered greedily."""

    kind: Literal["sampling"] = "sampling"
    n: Count = 1
    """Responses per row."""
    temperature: Positive = 1.0
    """Temperature of drawing."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the likeliest tokens that together have this much of the probability."""


class Given(Section):
    """The references of the train rows as responses; the teacher only says how likely each token is."""

    kind: Literal["given"] = "given"


Responses = Annotated[Greedy | Sampling | Given, Field(discriminator="kind")]


class TopK(Spec):
    """The k likeliest tokens at each position, the mass of all others, and some of these others, drawn."""

    target: ClassVar[str] = "distillctl.soft_labels.top_k:TopKLabels"
    kind: Literal["top_k"] = "top_k"
    k: Count = 32
    """Number of the likeliest tokens to keep; from a server at most `teacher.top_logprobs`, which is the default."""
    temperatures: Annotated[tuple[Positive, ...], Field(examples=[[2.0]])] = ()
    """Temperatures other than 1 that a loss uses. They must be known here, because the mass of the tail cannot be
    computed for another temperature later."""
    tail_draws: Annotated[int, Field(ge=0)] = 50
    """Number of tokens to draw; those that are not among the k are kept. From them `forward_kl` learns the tail's
    tokens; with 0 it learns only the tail's mass. From a server, 0."""


class Sampled(Spec):
    """Tokens drawn from the distribution, with importance weights (Anshumann et al. 2025, "Sparse Logit Sampling")."""

    target: ClassVar[str] = "distillctl.soft_labels.sampled:SampledLabels"
    kind: Literal["sampled"] = "sampled"
    draws: Count = 50
    """Number of tokens to draw at each position."""
    exponent: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from R ∝ P^exponent; below 1, unlikely tokens are drawn more often."""


class Dense(Spec):
    """The whole distribution, for tests and small vocabularies."""

    target: ClassVar[str] = "distillctl.soft_labels.dense:DenseLabels"
    kind: Literal["dense"] = "dense"


class Text(Spec):
    """The response alone (sequence-level distillation, Kim & Rush 2016)."""

    target: ClassVar[str] = "distillctl.soft_labels.text:TextLabels"
    kind: Literal["text"] = "text"


SoftLabels = Annotated[TopK | Sampled | Dense | Text, Field(discriminator="kind")]


class EvalSoftLabels(Spec):
    """The soft labels of eval rows instead of `top_k` or `sampled`, which allow an exact KL. No recipe names them."""

    target: ClassVar[str] = "distillctl.soft_labels.eval_rows:EvalLabels"
    least: Count = 4096
    """Smallest number of named tokens at each position, if the vocabulary has them."""
    most: Count = 32_768
    """Largest number of named tokens."""
    rest: Fraction = 5e-4
    """Mass that may stay unnamed, between these numbers."""
    draws: Count = 512
    """Number of tokens drawn from the unnamed mass."""


Metric = Literal["format", "fields", "exact", "chrf", "chrf++", "bleu", "rouge_l"]


class FieldReference(Section):
    """The reference of one value of a JSON answer. A column's name alone means that the cell is the reference."""

    column: Annotated[str, Field(examples=["sentiment"])]
    """Column that holds the reference."""
    values: Annotated[dict[str, str], Field(examples=[{"> 0.5": "good", "< -0.5": "bad"}])] = {}
    """Maps cells, or comparisons with cells, to the expected value. The first match counts; a row without a match is
    left out. Without it, the cell is the expected value."""

    @model_validator(mode="before")
    @classmethod
    def _column_alone(cls, value: object) -> Any:
        if not isinstance(value, (str, dict, FieldReference)):
            raise NotText(value)
        return {"column": value} if isinstance(value, str) else value


class Generate(TaskSection):
    """Answer with text."""

    target: ClassVar[str] = "distillctl.tasks.generate.task:GenerateTask"
    controls: ClassVar[Mapping[str, str]] = {
        "most_frequent": "always giving the most frequent answer of the train rows",
        "nearest_row": "giving the answer of the most similar train row",
    }
    scoring: ClassVar[str] = "the likeliest token at each step, until one that ends the answer; no temperature"
    kind: Literal["generate"]
    responses: Responses = Greedy()
    """The responses that the student learns from."""
    soft_labels: SoftLabels = TopK()
    """The part of the teacher's distribution that is kept at each token of a response."""
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(examples=[["\n"]])] = ()
    """A response ends at the first token that contains one of these texts, or at the model's own end token."""
    max_new_tokens: Count = 128
    """A longer response is cut off after this many tokens; collect counts those."""
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)] = ("chrf",)
    """How responses are compared with the references, or without references with the ceiling. The first metric that is
    not `format` scores the arms. `fields` is the share of equal values in JSON."""
    format: Annotated[str | None, Field(examples=['\\{"mood": "(good|bad)"\\}'])] = None
    """For the metric `format`: the regular expression that the whole response must match."""

    keep_placeholders: bool = False
    """Whether an answer must have the placeholders of its input, such as `%(name)s`, `{0}` or `<b>`. A bundle's code
    then has a function `fits`, which tells whether one has."""

    fields: Annotated[dict[str, FieldReference], Field(examples=[{"mood": "sentiment"}])] = {}
    """For the metric `fields`: maps keys of the answers' JSON to the columns that hold their references. The name of a
    nested key is its path, such as `a.b`."""

    probes: Annotated[tuple[str, ...], Field(examples=[["", "12345", "SAVE"]])] = ()
    """Inputs whose answers the report shows next to the teacher's: odd ones, such as an empty text, one word or markup.
    They are neither learned from nor scored."""

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

    def kept(self, split: str, *, served: bool = False) -> TopK | Sampled | Dense | Text | EvalSoftLabels:
        """Return the soft labels of a split. A server shows no whole distributions."""
        kept = Text() if split == "probe" else self.soft_labels
        return EvalSoftLabels() if split == "eval" and not served and isinstance(kept, TopK | Sampled) else kept

    @property
    def unscored_inputs(self) -> Sequence[str]:
        """Return the probes."""
        return self.probes

    @property
    def score(self) -> Metric:
        """Return the metric that scores the arms: the first that measures content, or `format` if it is alone."""
        return next((metric for metric in self.metrics if metric != "format"), "format")

    @property
    def response_tokens(self) -> int:
        """Return the maximal number of tokens of a response."""
        return self.max_new_tokens

    def reference(self, cell: object, spellings: Sequence[str], column: str, place: str) -> str:
        """Return the cell's text."""
        if not isinstance(cell, str):
            raise DataError(f'"{column}" must be text', where=place)
        return cell.strip()
