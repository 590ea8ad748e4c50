"""Teacher and student."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from distillctl.recipe.base import Count, Section, Spec
from distillctl.recipe.served import OpenAITeacher, chat_arguments

Model = Annotated[
    str,
    Field(examples=["HuggingFaceTB/SmolLM2-135M-Instruct", "models/teacher", "teacher.gguf", "package:NAME/path"]),
]
Revision = Annotated[str | None, Field(examples=["main"])]


class Checkpoint(Section):
    """A model's files, and whether code that comes with them may run."""

    model: Model
    """Hub id, folder, `.gguf` file, or `package:NAME/path`."""
    revision: Revision = None
    """Branch, tag or commit of a model from a hub. Without it, the hub's default branch."""
    trust_remote_code: bool = False
    """Whether the model may run code of its own. The command needs `--trust-remote-code`, too."""


class HuggingFaceTeacher(Checkpoint):
    """A causal language model that transformers runs on this machine."""

    operational: ClassVar[frozenset[str]] = frozenset()

    kind: Literal["huggingface"] = "huggingface"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the weights while the teacher runs."""
    device: Annotated[str, Field(examples=["cpu", "cuda:1"])] = "auto"
    """Device of the teacher, as torch names it. `auto` uses a GPU if there is one."""
    batch_tokens: Count = 640
    """Tokens of rows per forward pass, padding included. The shared context is not counted."""
    chat_template_kwargs: Annotated[dict[str, Any], Field(examples=[{"enable_thinking": False}])] = {}
    """Further arguments of the model's chat template. The example keeps Qwen 3 and similar models from beginning every
    answer with a thought."""
    share_context: bool = True
    """Run the context that all rows share once, and reuse its keys and values."""
    threads: Annotated[Count | None, Field(examples=[4])] = None
    """Processor threads of the teacher. Without it, torch's own choice."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _are_the_templates_own(cls, given: dict[str, object]) -> dict[str, Any]:
        return chat_arguments(given)

    @property
    def identity(self) -> dict[str, Any]:
        """Return the settings on which an answer depends, without the model's files."""
        return self.model_dump(mode="json", exclude={"model"})


def _teacher_kind(value: object) -> str:
    kind = value.get("kind", "huggingface") if isinstance(value, dict) else getattr(value, "kind", "huggingface")
    return str(kind)


Teacher = Annotated[
    Annotated[HuggingFaceTeacher, Tag("huggingface")] | Annotated[OpenAITeacher, Tag("openai")],
    Discriminator(_teacher_kind),
]


class TrimmedVocabulary(Section):
    """A trimmed vocabulary: the tokens that the data needs, and a safety set. All others leave the embeddings."""

    merges: Count = 4096
    """Size of the safety set: this many of the tokenizer's first merges (for WordPiece and unigram, of its first
    pieces), in addition to single bytes or characters and special tokens."""


class NewTokenizer(Section):
    """A new tokenizer, trained on the data's views and responses."""

    model: Literal["bpe", "unigram"] = "unigram"
    """Kind of tokenizer."""
    vocabulary: Annotated[int, Field(ge=320)] = 4000
    """Largest number of tokens, the 256 bytes and the special tokens included. A small corpus yields fewer."""


class StartsPretrained(Checkpoint, Spec):
    """The common settings of students that start from pretrained weights."""

    vocabulary: TrimmedVocabulary | None = None
    """Trim the vocabulary. Without it, the student keeps all tokens."""
    max_length: Annotated[Count | None, Field(examples=[128])] = None
    """Longest simplified view in tokens; for `generate`, view and response together. Without it, the model's limit; for
    decoders, 2,048 or twice the longest row, within the model's limit."""


class PretrainedStudent(StartsPretrained):
    """A pretrained model. To classify, it gets a fresh head; to generate, it keeps its own."""

    target: ClassVar[str] = "distillctl.students.pretrained:build"

    kind: Literal["pretrained"] = "pretrained"


class TruncatedStudent(StartsPretrained):
    """Chosen layers of a larger pretrained model, as in DistilBERT (Sanh et al. 2019)."""

    target: ClassVar[str] = "distillctl.students.truncated:build"

    kind: Literal["truncated"] = "truncated"
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(examples=[[0, 1, 2, 3, 5]])]
    """The layers to keep, counted from 0, in this order."""

    @model_validator(mode="after")
    def _each_once(self) -> TruncatedStudent:
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError("name at least one layer, and each at most once")
        return self


class FromConfigStudent(Spec):
    """A new small model: an architecture, its sizes, and another model's tokenizer or a new one."""

    target: ClassVar[str] = "distillctl.students.from_config:build"

    kind: Literal["from_config"] = "from_config"
    model_type: Annotated[str, Field(examples=["bert", "llama", "t5", "marian"])]
    """The transformers architecture: `bert` to classify, `llama`, `t5` or `marian` to generate."""
    config: Annotated[dict[str, Any], Field(examples=[{"hidden_size": 256, "num_hidden_layers": 4}])] = {}
    """Sizes, by the architecture's own names."""
    tokenizer: Annotated[
        str | NewTokenizer,
        Field(examples=["sentence-transformers/all-MiniLM-L6-v2", {"model": "unigram", "vocabulary": 4000}]),
    ]
    """The model whose tokenizer is used, named as in `teacher.model`; or a new tokenizer."""
    revision: Revision = None
    """Branch, tag or commit of a tokenizer from a hub. Without it, the hub's default branch."""
    max_length: Annotated[Count | None, Field(examples=[128])] = None
    """Longest simplified view in tokens; for `generate`, view and response together."""

    @model_validator(mode="after")
    def _revision_of_something(self) -> FromConfigStudent:
        if self.revision is not None and isinstance(self.tokenizer, NewTokenizer):
            raise ValueError("revision belongs to a tokenizer from a hub; a new one has none")
        return self


Student = Annotated[PretrainedStudent | TruncatedStudent | FromConfigStudent, Field(discriminator="kind")]
