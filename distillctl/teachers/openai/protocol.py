"""Requests to an OpenAI-compatible server, and strict parsing of its answers: a partial answer is none.

https://platform.openai.com/docs/api-reference/chat and …/completions. Servers omit different parts; only what vLLM,
SGLang, llama.cpp, Ollama and OpenAI have in common is read. llama.cpp's newer server also writes a completion's
log-probabilities in the form of chats, so both forms are read in both places.
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
    """One token of an answer.

    token: its bytes, or its text's if the server gives none. top: the likeliest tokens there with their natural
    log-probabilities, the likeliest first, no token twice.
    """

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
    """The server's answer. model, system_fingerprint: as stated there. usage: tokens read and written, None if not
    stated."""

    choices: tuple[Choice, ...]
    model: str | None
    system_fingerprint: str | None
    usage: tuple[int, int] | None


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Request:
    """One request.

    top_logprobs: 0 for none. seed: None is not sent. echo: in a completion, number of bytes at the end of the prompt
    whose tokens' log-probabilities are wanted instead of an answer's.
    """

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
        body: dict[str, Any] = {
            **self.extra,
            "model": self.model,
            self.limit_key: self.max_tokens,
            "temperature": self.temperature,
        }
        if self.api == "chat":
            messages = [{"role": "user", "content": self.prompt}] if isinstance(self.prompt, str) else self.prompt
            body["messages"] = messages
            if self.top_logprobs:
                body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        else:
            body["prompt"] = self.prompt
            if self.top_logprobs:
                body["logprobs"] = self.top_logprobs
            if self.echo:
                body["echo"] = True
        if self.n > 1:
            body["n"] = self.n
        if self.temperature:  # servers have different defaults
            body["top_p"] = self.top_p
        if self.stop:
            body["stop"] = list(self.stop)
        if self.seed is not None:
            body["seed"] = self.seed
        return body

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


def _list(default: object = None) -> Any:
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
    """`_number` checks the values, which are numbers or null."""


class _Message(_Loose):
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
    message: _Message | None = None
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
    """Parse the answer to ``request``. Raise Malformed if JSON, a choice, its end or log-probabilities are missing."""
    try:
        answer = _ANSWER.validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise Malformed(f"bad JSON ({f'{where}: ' if where else ''}{first['msg']})") from None
    if len(answer.choices) < request.n:
        raise Malformed("no choices" if not answer.choices else f"{len(answer.choices)} of {request.n} choices")
    choices = tuple(
        _choice(choice, request) for choice in sorted(answer.choices, key=lambda choice: choice.index)[: request.n]
    )
    usage = None if answer.usage is None else (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    return Answer(choices, answer.model, answer.system_fingerprint, usage)


def _choice(choice: _Choice, request: Request) -> Choice:
    if request.echo:
        return Choice("", False, _echoed(choice.logprobs, request))
    message = choice.message
    text = choice.text if request.api == "completions" else None if message is None else message.text
    if text is None:
        raise Malformed("a choice without text")
    if message is not None and message.refusal:
        raise Malformed("refused")
    if choice.finish_reason not in ("stop", "length", "eos"):
        raise Malformed(f"not ended (finish_reason {choice.finish_reason!r})")
    positions = _positions(choice.logprobs) if request.top_logprobs else ()
    if request.top_logprobs and not (positions and all(position.top for position in positions)) and text:
        raise Malformed("no log-probabilities")
    if positions and (message is None or message.text == (message.content or "")):
        text = _restore_space(text, [position.token for position in positions], request.stop)
    return Choice(text, choice.finish_reason == "length", positions)


def _restore_space(text: str, tokens: Sequence[bytes], stop: Sequence[str]) -> str:
    """Return the text with the first space that some servers remove.

    Raise Malformed if it differs from the tokens, except for a stop string or an end token.
    """
    whole, encoded = b"".join(tokens), text.encode()
    if b"" in tokens or "\ufffd" in whole.decode(errors="replace"):  # tokens that are parts of characters
        return text
    if not whole.startswith(encoded):
        begin = whole[: len(whole) - len(whole.lstrip())]
        text, encoded = f"{begin.decode()}{text.lstrip()}", begin + encoded.lstrip()
    rest = whole[len(encoded) :]
    ended = not rest or any(rest.startswith(s.encode()) for s in stop) or rest == tokens[-1]
    if not whole.startswith(encoded) or not ended:
        raise Malformed("its text differs from its tokens")
    return text


def _positions(logprobs: _Logprobs | None) -> tuple[Position, ...]:
    if logprobs is None:
        return ()
    if logprobs.content is not None:
        return tuple(
            Position(_bytes(entry), _top([(_bytes(token), token.logprob) for token in entry.top_logprobs]))
            for entry in logprobs.content
        )
    tokens, top = logprobs.tokens or [], logprobs.top_logprobs or []
    if len(tokens) != len(top):
        raise Malformed(f"log-probabilities of {len(top)} of {len(tokens)} tokens")
    return tuple(
        Position(_spelled(token), _top([(_spelled(text), _number(value)) for text, value in (shown or {}).items()]))
        for token, shown in zip(tokens, top, strict=True)
    )


def _echoed(logprobs: _Logprobs | None, request: Request) -> tuple[Position, ...]:
    """Return the tokens at the end of the prompt, each with only its own log-probability.

    Empty if the server gives none, or if a token begins before that end.
    """
    if logprobs is None or not isinstance(request.prompt, str):
        return ()
    if logprobs.content is not None:
        tokens, values = [_bytes(entry) for entry in logprobs.content], [entry.logprob for entry in logprobs.content]
    else:
        tokens, values = [_spelled(token) for token in logprobs.tokens or []], logprobs.token_logprobs or []
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
    shown = [_top([entry]) for entry in zip(tokens[start:count], values[start:count], strict=False)]
    if left or len(shown) < count - start or not all(shown):
        return ()
    return tuple(Position(top[0][0], top) for top in shown)


def _spelled(text: str) -> bytes:
    """Return a completion token's bytes. OpenAI writes parts of characters as bytes:\\xe2\\x80."""
    match = _SPELLED.fullmatch(text)
    return bytes.fromhex(match[1].replace("\\x", "")) if match else text.encode()


def _bytes(token: _Token) -> bytes:
    try:
        return bytes(token.bytes) if token.bytes else token.token.encode()
    except ValueError:
        raise Malformed(f"a token has invalid bytes: {token.bytes}") from None


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        raise Malformed(f"a log-probability is not a number: {type(value).__name__}") from None


def _top(tokens: Sequence[tuple[bytes, float | None]]) -> tuple[tuple[bytes, float], ...]:
    """Sort tokens by likelihood. Of tokens with the same bytes keep the likeliest; the others count as unseen."""
    best: dict[bytes, float] = {}
    for token, log_prob in tokens:
        if log_prob is not None and not math.isnan(log_prob) and log_prob > NEVER:
            if log_prob > ROUNDING:
                raise Impossible(f"{token.decode(errors='replace')!r} has a log-probability of {log_prob:.6g}, above 0")
            # Rounded as in the cache, so that an answer is the same before and after a restart.
            best[token] = max(best.get(token, -math.inf), round(min(log_prob, 0.0), 6))
    if (mass := math.fsum(map(math.exp, best.values()))) > 1 + ROUNDING:
        raise Impossible(f"the {len(best)} tokens shown have {mass:.3g} of the probability together, more than 1")
    return tuple(sorted(best.items(), key=lambda entry: -entry[1]))
