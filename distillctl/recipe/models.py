"""Teacher and student."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from distillctl.recipe.base import Closed, Count, Spec
from distillctl.recipe.served import OpenAITeacher, chat_arguments


class HuggingFaceTeacher(Spec):
    """A causal language model run here by transformers."""

    target: ClassVar[str] = "distillctl.teachers.huggingface:load"
    operational: ClassVar[frozenset[str]] = frozenset()

    kind: Literal["huggingface"] = "huggingface"
    model: str
    """Hub id, directory, `.gguf` file, or `package:NAME/path`."""
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    batch_tokens: Count = 640
    """Row tokens per forward pass, padding included; the shared context is not counted."""
    chat_template_kwargs: dict[str, Any] = {}
    """Further arguments of the model's chat template, such as {enable_thinking: false}, which keeps Qwen 3 and its like
    from beginning every answer with a thought."""
    share_context: bool = True
    """Run what all rows have in common once and reuse its keys and values."""
    threads: Count | None = None

    @field_validator("chat_template_kwargs")
    @classmethod
    def _are_the_templates_own(cls, given: dict[str, Any]) -> dict[str, Any]:
        return chat_arguments(given)

    @property
    def identity(self) -> dict[str, Any]:
        """What an answer depends on, besides the model's files."""
        return self.model_dump(mode="json", exclude={"model"})


def _teacher_kind(value: Any) -> str:
    kind = value.get("kind", "huggingface") if isinstance(value, dict) else getattr(value, "kind", "huggingface")
    return str(kind)


Teacher = Annotated[
    Annotated[HuggingFaceTeacher, Tag("huggingface")] | Annotated[OpenAITeacher, Tag("openai")],
    Discriminator(_teacher_kind),
]


class Vocabulary(Closed):
    """Trim the vocabulary: keep what the data needs and a safety set; everything else leaves the embeddings."""

    merges: Count = 4096
    """The safety set: so many of the tokenizer's first merges (of WordPiece and unigram: of its first pieces), besides
    single bytes or characters and special tokens."""


class NewTokenizer(Closed):
    """A tokenizer of the student's own, trained on the data's views and responses."""

    model: Literal["bpe", "unigram"] = "unigram"
    vocabulary: Annotated[int, Field(ge=320)] = 4000
    """Tokens at most, the 256 bytes and the special ones among them; a small corpus yields fewer."""


class StartsPretrained(Spec):
    """What students that start from pretrained weights have in common."""

    model: str
    """Hub id, directory, `.gguf` file, or `package:NAME/path`."""
    revision: str | None = None
    trust_remote_code: bool = False
    vocabulary: Vocabulary | None = None
    max_length: Count | None = None
    """Longest simplified view, in tokens (default: what the model allows); to generate, view and response together
    (default of a decoder: 2,048 or twice the longest row, as far as the model allows)."""


class PretrainedStudent(StartsPretrained):
    """A pretrained model; to classify it gets a fresh head, to generate it keeps its own."""

    target: ClassVar[str] = "distillctl.students.pretrained:build"

    kind: Literal["pretrained"] = "pretrained"


class TruncatedStudent(StartsPretrained):
    """Chosen layers of a larger pretrained model (as DistilBERT, Sanh et al. 2019)."""

    target: ClassVar[str] = "distillctl.students.truncated:build"

    kind: Literal["truncated"] = "truncated"
    layers: tuple[Annotated[int, Field(ge=0)], ...]
    """Those kept, counted from 0, in this order."""

    @model_validator(mode="after")
    def _each_once(self) -> TruncatedStudent:
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError("name at least one layer, and each at most once")
        return self


class FromConfigStudent(Spec):
    """A new small model: an architecture, its sizes, and somebody's tokenizer or a new one."""

    target: ClassVar[str] = "distillctl.students.from_config:build"

    kind: Literal["from_config"] = "from_config"
    model_type: str
    """The transformers architecture, such as `bert` to classify, `llama`, `t5` or `marian` to generate."""
    config: dict[str, Any] = {}
    """Sizes, by the architecture's own names."""
    tokenizer: str | NewTokenizer
    """A model reference whose tokenizer is used, or `{model: …, vocabulary: …}` for a new one."""
    revision: str | None = None
    max_length: Count | None = None

    @model_validator(mode="after")
    def _revision_of_something(self) -> FromConfigStudent:
        if self.revision is not None and isinstance(self.tokenizer, NewTokenizer):
            raise ValueError("revision belongs to a tokenizer from a hub; a new one has none")
        return self


Student = Annotated[PretrainedStudent | TruncatedStudent | FromConfigStudent, Field(discriminator="kind")]
