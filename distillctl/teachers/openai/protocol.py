"""What is said to an OpenAI-compatible server, and what it has to answer: strict, for a partial answer is none.

https://platform.openai.com/docs/api-reference/chat and …/completions. Servers differ in what they leave out; what is
read here is what vLLM, SGLang, llama.cpp, Ollama and OpenAI have in common. The newer llama.cpp server gives
log-probabilities in the form of chats for completions, too: both forms are read in both places.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

NEVER = -1000.0
"""Log-probabilities below this are placeholders (OpenAI and vLLM write −9999) and are ignored."""
ROUNDING = 0.01
"""Nats above zero, or probability above 1, that rounding in a server can explain."""
THINK = "<think>"
"""Begins a reasoning model's thoughts, which come before its answer."""
_FRAME_BYTES, _TOKEN_BYTES = 4 << 20, 512
"""Largest answer in bytes: a fixed part, and a part for each token that is shown."""
_SPELLED = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")
Message = dict[str, str]
Prompt = str | list[Message]
"""The text of a completion, or a chat's messages."""
Api = Literal["chat", "completions"]
LimitKey = Literal["max_tokens", "max_completion_tokens"]
"""Name of the limit of an answer's length. OpenAI's newer models accept only the second one."""


class Malformed(Exception):
    """The answer is incomplete or malformed. Another try may succeed."""


class Impossible(Malformed):
    """The numbers are no log-probabilities: they are positive, or sum to a probability above 1."""


@dataclass(frozen=True)
class Position:
    """One token of an answer: its bytes (of the text, where the server gives none), and the likeliest tokens there
    with their natural log-probabilities, the likeliest first; no token twice."""

    token: bytes
    top: tuple[tuple[bytes, float], ...] = ()

    @property
    def left(self) -> float:
        """Return the mass of all tokens that are not shown."""
        return max(0.0, 1.0 - math.fsum(math.exp(log_prob) for _, log_prob in self.top))


@dataclass(frozen=True)
class Choice:
    """One answer. cut: it reached the length limit. positions: empty if none were requested."""

    text: str
    cut: bool
    positions: tuple[Position, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What came back: choices in order; model and system_fingerprint as the server names them; tokens read and written,
    None where it does not say."""

    choices: tuple[Choice, ...]
    model: str | None
    system_fingerprint: str | None
    usage: tuple[int, int] | None


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Request:
    """One question. top_logprobs: 0 for none; seed: None for none sent; echo: of a completion, so many bytes at the end
    of the prompt whose own tokens' log-probabilities are wanted, instead of an answer's."""

    api: Api
    model: str
    prompt: Prompt
    max_tokens: int
    top_logprobs: int = 0
    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    limit_key: LimitKey = "max_tokens"
    echo: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the request's body."""

    @property
    def body(self) -> dict[str, Any]:
        """Return the body as JSON, without keys that have their default value, since not all servers know every key."""
        found: dict[str, Any] = {
            **self.extra,
            "model": self.model,
            self.limit_key: self.max_tokens,
            "temperature": self.temperature,
        }
        if self.api == "chat":
            asked = [{"role": "user", "content": self.prompt}] if isinstance(self.prompt, str) else self.prompt
            found["messages"] = asked
            if self.top_logprobs:
                found |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        else:
            found["prompt"] = self.prompt
            if self.top_logprobs:
                found["logprobs"] = self.top_logprobs
            if self.echo:
                found["echo"] = True
        if self.n > 1:
            found["n"] = self.n
        if self.temperature:  # servers have defaults of their own
            found["top_p"] = self.top_p
        if self.stop:
            found["stop"] = list(self.stop)
        if self.seed is not None:
            found["seed"] = self.seed
        return found

    @property
    def characters(self) -> int:
        """Return the characters of the prompt, without the chat template."""
        return sum(map(len, [self.prompt] if isinstance(self.prompt, str) else [m["content"] for m in self.prompt]))

    @property
    def most_bytes(self) -> int:
        """Return the largest answer in bytes that the requested tokens can explain."""
        positions = self.n * self.max_tokens + (self.characters if self.echo else 0)
        return _FRAME_BYTES + positions * (1 + self.top_logprobs) * _TOKEN_BYTES


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


class _Loose(BaseModel):
    model_config = ConfigDict(extra="ignore")


def _list(default: Any = None) -> Any:
    """Report only the first wrong item of a list, which may have a million."""
    return Field(default, fail_fast=True)


class _Token(_Loose):
    token: str
    bytes: list[int] | None = _list()
    logprob: float | None = None


class _Content(_Token):
    top_logprobs: list[_Token] = _list([])


class _Logprobs(_Loose):
    """Log-probabilities of both APIs: `content` for chats, the others for completions."""

    content: list[_Content] | None = _list()
    tokens: list[str] | None = _list()
    token_logprobs: list[float | None] | None = _list()
    top_logprobs: list[dict[str, Any] | None] | None = _list()
    """The values are numbers or null: `_number` says so, at the first that is neither."""


class _Said(_Loose):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @property
    def text(self) -> str:
        """Return the answer; if it has not begun, the thoughts before it, as the model writes them."""
        thoughts = self.reasoning_content or self.reasoning
        return self.content or (f"{THINK}{thoughts}" if thoughts else "")


class _Choice(_Loose):
    index: int = 0
    text: str | None = None
    message: _Said | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


Count = Annotated[int, Field(ge=0, le=2**40)]


class _Usage(_Loose):
    prompt_tokens: Count
    completion_tokens: Count = 0


class _Answer(_Loose):
    choices: list[_Choice] = Field(fail_fast=True)
    model: str | None = None
    system_fingerprint: str | None = None
    usage: _Usage | None = None


_ANSWER = TypeAdapter(_Answer)


def parse(body: bytes, request: Request) -> Answer:
    """Parse the answer to ``request``. Raise Malformed if it is not JSON, or lacks a choice, an end or
    log-probabilities."""
    try:
        answer = _ANSWER.validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise Malformed(f"bad JSON ({f'{where}: ' if where else ''}{first['msg']})") from None
    if len(answer.choices) < request.n:
        raise Malformed("no choices" if not answer.choices else f"{len(answer.choices)} of {request.n} choices")
    choices = tuple(_choice(one, request) for one in sorted(answer.choices, key=lambda one: one.index)[: request.n])
    usage = None if answer.usage is None else (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    return Answer(choices, answer.model, answer.system_fingerprint, usage)


def _choice(found: _Choice, request: Request) -> Choice:
    if request.echo:
        return Choice("", False, _echoed(found.logprobs, request))
    said = found.message
    text = found.text if request.api == "completions" else None if said is None else said.text
    if text is None:
        raise Malformed("a choice without text")
    if said is not None and said.refusal:
        raise Malformed("refused")
    if found.finish_reason not in ("stop", "length", "eos"):
        raise Malformed(f"not ended (finish_reason {found.finish_reason!r})")
    positions = _positions(found.logprobs) if request.top_logprobs else ()
    if request.top_logprobs and not (positions and all(position.top for position in positions)) and text:
        raise Malformed("no log-probabilities")
    if positions and (said is None or said.text == (said.content or "")):
        text = _as_tokens_have_it(text, [position.token for position in positions], request.stop)
    return Choice(text, found.finish_reason == "length", positions)


def _as_tokens_have_it(text: str, tokens: Sequence[bytes], stop: Sequence[str]) -> str:
    """The text with the space that some servers take off its beginning. Malformed where it is not what the tokens say:
    all of them, but for a stop string or an end token."""
    whole, said = b"".join(tokens), text.encode()
    if b"" in tokens or "\ufffd" in whole.decode(errors="replace"):  # tokens that are parts of characters
        return text
    if not whole.startswith(said):
        begin = whole[: len(whole) - len(whole.lstrip())]
        text, said = f"{begin.decode()}{text.lstrip()}", begin + said.lstrip()
    rest = whole[len(said) :]
    ended = not rest or any(rest.startswith(s.encode()) for s in stop) or rest == tokens[-1]
    if not whole.startswith(said) or not ended:
        raise Malformed("its text is not that of its tokens")
    return text


def _positions(found: _Logprobs | None) -> tuple[Position, ...]:
    if found is None:
        return ()
    if found.content is not None:
        return tuple(
            Position(_bytes(one), _top([(_bytes(token), token.logprob) for token in one.top_logprobs]))
            for one in found.content
        )
    tokens, top = found.tokens or [], found.top_logprobs or []
    if len(tokens) != len(top):
        raise Malformed(f"log-probabilities of {len(top)} of {len(tokens)} tokens")
    return tuple(
        Position(_spelled(token), _top([(_spelled(text), _number(value)) for text, value in (each or {}).items()]))
        for token, each in zip(tokens, top, strict=True)
    )


def _echoed(found: _Logprobs | None, request: Request) -> tuple[Position, ...]:
    """The tokens at the end of the prompt, each with its own log-probability alone; none where the server does not give
    them, or one of them begins before."""
    if found is None or not isinstance(request.prompt, str):
        return ()
    if found.content is not None:
        tokens, values = [_bytes(one) for one in found.content], [one.logprob for one in found.content]
    else:
        tokens, values = [_spelled(token) for token in found.tokens or []], found.token_logprobs or []
    prompt = request.prompt.encode()
    for count in (len(tokens) - 1, len(tokens)):  # the last token is the answer's, if the server shows one
        if b"".join(tokens[: max(count, 0)]).endswith(prompt):
            break
    else:
        return ()
    start, left = count, request.echo
    while left > 0 and start > 0:
        start -= 1
        left -= len(tokens[start])
    shown = [_top([one]) for one in zip(tokens[start:count], values[start:count], strict=False)]
    if left or len(shown) < count - start or not all(shown):
        return ()
    return tuple(Position(top[0][0], top) for top in shown)


def _spelled(text: str) -> bytes:
    """A completion's token; OpenAI writes those that are parts of characters as bytes:\\xe2\\x80."""
    found = _SPELLED.fullmatch(text)
    return bytes.fromhex(found[1].replace("\\x", "")) if found else text.encode()


def _bytes(token: _Token) -> bytes:
    try:
        return bytes(token.bytes) if token.bytes else token.token.encode()
    except ValueError:
        raise Malformed(f"a token's bytes are none: {token.bytes}") from None


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        raise Malformed(f"a log-probability is no number: {type(value).__name__}") from None


def _top(found: Sequence[tuple[bytes, float | None]]) -> tuple[tuple[bytes, float], ...]:
    """Sort tokens by likelihood. Of tokens with the same bytes keep the likeliest; the others count as unseen."""
    best: dict[bytes, float] = {}
    for token, log_prob in found:
        if log_prob is not None and not math.isnan(log_prob) and log_prob > NEVER:
            if log_prob > ROUNDING:
                raise Impossible(f"{token.decode(errors='replace')!r} has a log-probability of {log_prob:.6g}, above 0")
            # As the cache keeps them: an answer is the same before and after a restart.
            best[token] = max(best.get(token, -math.inf), round(min(log_prob, 0.0), 6))
    if (mass := math.fsum(map(math.exp, best.values()))) > 1 + ROUNDING:
        raise Impossible(f"the {len(best)} tokens shown have {mass:.3g} of the probability together, more than 1")
    return tuple(sorted(best.items(), key=lambda one: -one[1]))
