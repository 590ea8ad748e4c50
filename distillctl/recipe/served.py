"""The teacher behind an API: requests, limits and prices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from distillctl.recipe import addresses
from distillctl.recipe.base import Count, Positive, Section
from distillctl.recipe.contexts import Contexts
from distillctl.recipe.generate import Generate, Given, Text, TopK
from distillctl.recipe.task import Task

Price = Annotated[float, Field(ge=0)]


class Prices(Section):
    """The price of a million tokens, in any one currency."""

    input: Annotated[Price, Field(examples=[0.2])]
    """Price of a million tokens that the model reads."""
    output: Annotated[Price, Field(examples=[0.6])]
    """Price of a million tokens that the model writes."""


def chat_arguments(given: dict[str, object]) -> dict[str, Any]:
    """Refuse the arguments that distillctl itself passes to a chat template."""
    if taken := sorted({"messages", "tools", "documents", "add_generation_prompt"} & set(given)):
        raise ValueError(f"{taken[0]} is not an argument to choose: the context says it")
    return given


class OpenAITeacher(Section):
    """A model behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama, OpenAI."""

    operational: ClassVar[frozenset[str]] = frozenset(
        {"api_key_env", "concurrency", "timeout_seconds", "max_retries", "backoff_seconds", "requests_per_minute"}
        | {"tokens_per_minute", "max_tokens_total", "prices", "max_cost"}
    )
    """Keys that change the cost and the time of an answer, but not the answer: they make no stage stale."""

    kind: Literal["openai"]
    model: Annotated[str, Field(examples=["Qwen/Qwen3-32B"])]
    """The model's name on the server."""
    base_url: Annotated[str, Field(examples=["http://localhost:8000/v1"])] = "https://api.openai.com/v1"
    """Address of the server, up to and including /v1. It may hold no key."""
    api: Literal["chat", "completions"] = "chat"
    """`chat`: the server puts its own chat template around the messages; a `template` becomes one message of the user.
    `completions`: the model reads the template as it is, and labels of several tokens can be scored."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Environment variable that holds the key; `null` sends none. A server on this machine may do without."""
    top_logprobs: Annotated[int, Field(ge=1, le=1000)] = 20
    """How many of the likeliest tokens to ask for at each position. Servers return fewer (OpenAI 20, or 5)."""
    tokenizer: Annotated[str | None, Field(examples=["Qwen/Qwen3-32B"])] = None
    """The model's tokenizer (hub id, folder, `.gguf` file, or `package:NAME/path`). It tells which tokens a label is
    made of, and the ids of tokens."""
    seed: Annotated[int | None, Field(examples=[0])] = None
    """Seed to send with every request, for servers that want one. Requests that draw send a seed of their own, derived
    from the recipe's seed, the row and the sample."""
    chat_template_kwargs: Annotated[dict[str, Any], Field(examples=[{"enable_thinking": False}])] = {}
    """Further arguments of the model's chat template. Every chat request sends them under this name, which vLLM, SGLang
    and llama.cpp know."""
    extra_body: Annotated[dict[str, Any], Field(examples=[{"repeat_penalty": 1.0}])] = {}
    """Further keys of every request, by the server's own names. Use them to switch off what the server would otherwise
    do to probabilities by itself; the example is for llama-cpp-python. Do not put secrets here."""
    concurrency: Count = 8
    """Requests that run at the same time."""
    timeout_seconds: Positive = 120.0
    """Time for one try of a request, from its first byte to the last byte of its answer."""
    max_retries: Annotated[int, Field(ge=0)] = 6
    """Number of times that a failed request is repeated."""
    backoff_seconds: Positive = 0.5
    """Wait before the first retry. It doubles for each further one, up to a minute, less a random part. A server's
    Retry-After is honoured."""
    requests_per_minute: Annotated[Positive | None, Field(examples=[500])] = None
    """Largest rate of requests. Without it, no limit."""
    tokens_per_minute: Annotated[Positive | None, Field(examples=[200_000])] = None
    """Largest rate of tokens, read and written. Without it, no limit."""
    max_tokens_total: Annotated[Count | None, Field(examples=[5_000_000])] = None
    """Stop before this run directory uses more tokens than this, read and written. Without it, no limit."""
    prices: Prices | None = None
    """Prices of tokens. `--dry-run` and `collect` then state a cost, and `max_cost` can be checked."""
    max_cost: Annotated[Positive | None, Field(examples=[5])] = None
    """Stop before this run directory costs more than this; needs `prices`. Without it, no limit."""

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        parts = addresses.split(value)
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError(
                "must hold no user, password or query: a key stands in the environment variable that api_key_env names"
            )
        return value.rstrip("/")

    @field_validator("chat_template_kwargs")
    @classmethod
    def _are_the_templates_own(cls, given: dict[str, object]) -> dict[str, Any]:
        return chat_arguments(given)

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", value):
            raise ValueError("is the name of an environment variable, not the key itself")
        return value

    @model_validator(mode="after")
    def _keys_stay_secret(self) -> OpenAITeacher:
        if self.api_key_env is not None and self.base_url.startswith("http:") and not self.is_local:
            raise ValueError(
                "base_url: over http the key could be read on the way; use https, or api_key_env: null for a server "
                "that asks for none"
            )
        return self

    @model_validator(mode="after")
    def _costs_can_be_known(self) -> OpenAITeacher:
        if self.max_cost is not None and self.prices is None:
            raise ValueError("max_cost needs `prices`: what a million input and output tokens cost")
        return self

    @property
    def is_local(self) -> bool:
        """Tell whether the server runs on this machine."""
        return addresses.is_local(self.base_url)

    @property
    def host(self) -> str:
        """Return the server's host, as in approvals: HOST, or HOST:PORT unless it is https on its usual port."""
        return addresses.host(self.base_url)

    @property
    def further_keys(self) -> dict[str, Any]:
        """Return the additional keys of every request's body."""
        arguments = {"chat_template_kwargs": self.chat_template_kwargs} if self.api == "chat" else {}
        return {**self.extra_body, **{key: value for key, value in arguments.items() if value}}

    @property
    def identity(self) -> dict[str, Any]:
        """Return the settings on which an answer depends."""
        return self.model_dump(mode="json", exclude=set(self.operational))


def with_defaults(recipe: Mapping[str, object]) -> dict[str, Any]:
    """Return the recipe's sections with defaults of the task that suit a served teacher.

    For `generate`, as many tokens are kept as are requested, and none is drawn from the tail.
    """
    teacher, task = recipe.get("teacher"), recipe.get("task")
    if not isinstance(teacher, Mapping) or teacher.get("kind") != "openai" or not isinstance(task, Mapping):
        return dict(recipe)
    more: dict[str, Any] = {}
    if task.get("kind", "classify") != "classify":
        kept = task.get("soft_labels", {"kind": "top_k"})
        if isinstance(kept, Mapping) and kept.get("kind") == "top_k":
            more = {"soft_labels": {"k": teacher.get("top_logprobs", 20), "tail_draws": 0, **kept}}
    return {**recipe, "task": {**task, **more}}


def unsupported_by_server(teacher: OpenAITeacher, task: Task, contexts: Contexts) -> str | None:
    """Say what the recipe asks for that no server can provide, or return None."""
    all_contexts = (contexts.full, contexts.simplified, *contexts.arms.values())
    if teacher.api == "completions" and any(context.messages is not None for context in all_contexts):
        return "contexts: completions take a template; with messages use teacher.api: chat"
    if contexts.simplified.messages is not None:
        return "contexts.simplified: the server's chat template is not known here; use a template, sent as a message"
    if not isinstance(task, Generate):
        if teacher.api == "chat" and (prefix := task.answer_prefix or "").strip() != prefix:
            return f'task.answer_prefix: an answer in a chat does not begin with {prefix!r}; use answer_prefix: ""'
        return None
    kept = task.soft_labels
    if isinstance(task.responses, Given) and teacher.tokenizer is None:
        return "task.responses: given needs teacher.tokenizer, to tell the tokens of the responses"
    if isinstance(kept, Text):
        return None
    if not isinstance(kept, TopK):
        return f"task.soft_labels: {kept.kind} needs whole distributions, which no server gives; use top_k or text"
    if teacher.tokenizer is None:
        return "task.soft_labels: top_k needs teacher.tokenizer, to tell the ids of tokens; or use text"
    if isinstance(task.responses, Given):
        return "task.responses: a server does not score given responses; with soft_labels: text they can be used"
    if kept.tail_draws:
        return "task.soft_labels.tail_draws: a server draws no tokens of the tail, use 0"
    if {*kept.temperatures} - {1.0}:
        return "task.soft_labels.temperatures: a server gives the mass of the tail at temperature 1 alone"
    if kept.k > teacher.top_logprobs:
        return f"task.soft_labels.k: {kept.k} tokens cannot be kept of teacher.top_logprobs: {teacher.top_logprobs}"
    return None
