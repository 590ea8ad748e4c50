"""Find out what a server can do with a few tiny requests, before anything is paid for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from distillctl.errors import UnavailableError
from distillctl.recipe import OpenAITeacher
from distillctl.run_dir import checksums
from distillctl.run_dir.workspace import digest, write_text
from distillctl.teachers.openai.client import RequestFailed
from distillctl.teachers.openai.protocol import Answer, LimitKey, Request
from distillctl.teachers.openai.request_scheduler import RequestScheduler, Stopped
from distillctl.untrusted import limits

_HELLO = "1 2 3 4"
_FEWER = (20, 10, 5, 2, 1)
"""Numbers of likeliest tokens to try if the server refuses more: OpenAI's limits are 20 and 5."""
_RETRIES = 4
_SAME = 0.05
"""Difference in nats between two answers' log-probabilities that is rounding."""


class ServerCapabilities(BaseModel):
    """The results of the first requests.

    top_logprobs: how many of the likeliest tokens may be requested, 0: none. shown: how many the server showed.
    samples: whether one request can return several answers. model, system_fingerprint: as the server states them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    asked: str
    """Digest of the teacher's identity and of the needs (`Wanted.key`)."""
    model: str | None
    system_fingerprint: str | None
    top_logprobs: int
    shown: int
    samples: bool
    untempered: bool
    """Whether log-probabilities ignore the temperature of a request."""
    usage: bool
    limit_key: LimitKey

    def describe(self, spec: OpenAITeacher) -> str:
        """Describe the capabilities in one line."""
        shown = f"the {self.shown} likeliest tokens of each position" if self.top_logprobs else "no probabilities"
        named = "" if self.model in (None, spec.model) else f" (as {self.model})"
        return f"{spec.base_url} shows {shown} of {spec.model}{named}, by its {spec.api} API"


@dataclass(frozen=True)
class Wanted:
    """The task's needs: log-probabilities, several answers per request, log-probabilities at a temperature."""

    logprobs: bool
    samples: bool = False
    temperature: float = 1.0

    def key(self, spec: OpenAITeacher) -> str:
        """Return the digest of teacher and needs, for `ServerCapabilities.asked`."""
        return digest([spec.identity, self.logprobs, self.samples, self.temperature])


async def ask(scheduler: RequestScheduler, wanted: Wanted) -> ServerCapabilities:
    """Ask the server. Raise UnavailableError if it cannot be used."""
    spec = scheduler.spec
    hello = Request(spec.api, spec.model, _HELLO, max_tokens=1, seed=spec.seed, extra=spec.further_keys)
    answer, hello = await _plain(scheduler, hello)
    granted = shown = 0
    for count in _counts(spec.top_logprobs) if wanted.logprobs else ():
        tried = await _tried(scheduler, replace(hello, top_logprobs=count))
        if tried is not None:
            answer, granted = tried, count
            shown = min([count, *(len(position.top) for position in tried.choices[0].positions[:1])])
            break
        if "malformed answer" in scheduler.failures:  # the server did not refuse, but omitted them
            break
    several = wanted.samples and await _tried(scheduler, replace(hello, n=2, temperature=1.0)) is not None
    untempered = True
    if granted and wanted.temperature != 1:
        tempered = await _tried(scheduler, replace(hello, top_logprobs=granted, temperature=wanted.temperature))
        untempered = tempered is not None and _apart(answer, tempered) < _SAME
    return ServerCapabilities(
        asked=wanted.key(spec),
        model=answer.model,
        system_fingerprint=answer.system_fingerprint,
        top_logprobs=granted,
        shown=shown,
        samples=several,
        untempered=untempered,
        usage=answer.usage is not None,
        limit_key=hello.limit_key,
    )


MORE = (1000, 300, 100, 50, 20)
"""Larger numbers of likeliest tokens to try for rows whose labels are not shown."""


async def more(scheduler: RequestScheduler, capabilities: ServerCapabilities) -> int:
    """Return how many likeliest tokens the server shows beyond the recipe's number; 0 if no more."""
    if capabilities.top_logprobs < scheduler.spec.top_logprobs or capabilities.shown < capabilities.top_logprobs:
        return 0  # it has already refused this many
    for count in (count for count in MORE if count > capabilities.top_logprobs):
        answer = await _tried(scheduler, replace(_hello(scheduler.spec, capabilities), top_logprobs=count))
        if answer is not None:
            shown = len(answer.choices[0].positions[0].top) if answer.choices[0].positions else 0
            return count if shown > capabilities.shown else 0
    return 0


async def echoes(scheduler: RequestScheduler, capabilities: ServerCapabilities) -> bool:
    """Tell whether the server returns log-probabilities of a prompt's own tokens."""
    if scheduler.spec.api == "chat":
        return False
    answer = await _tried(scheduler, replace(_hello(scheduler.spec, capabilities), top_logprobs=1, echo=len(" 4")))
    return answer is not None and bool(answer.choices[0].positions)


def _hello(spec: OpenAITeacher, capabilities: ServerCapabilities) -> Request:
    return Request(
        spec.api,
        spec.model,
        _HELLO,
        max_tokens=1,
        seed=spec.seed,
        limit_key=capabilities.limit_key,
        extra=spec.further_keys,
    )


def _apart(first: Answer, second: Answer) -> float:
    """Return the largest difference in nats of a token's log-probability at the first position; 0 if none is shown."""
    tops = [dict(position.top) for answer in (first, second) for position in answer.choices[0].positions[:1]]
    if len(tops) < 2:
        return 0.0
    return max((abs(tops[0][token] - tops[1][token]) for token in tops[0] if token in tops[1]), default=math.inf)


def read(path: Path, asked: str) -> ServerCapabilities | None:
    """Read the capabilities that an earlier run found for the same needs, or return None."""
    try:
        document, _ = checksums.read(limits.read_bytes(path, 1 << 20))
        capabilities = ServerCapabilities.model_validate(document)
    except (OSError, ValueError):
        return None
    return capabilities if capabilities.asked == asked else None


def write(path: Path, capabilities: ServerCapabilities) -> None:
    """Store the capabilities with a checksum."""
    write_text(path, checksums.put(capabilities.model_dump_json(indent=2)))


def _counts(wanted: int) -> list[int]:
    return [wanted, *(count for count in _FEWER if count < wanted)]


async def _plain(scheduler: RequestScheduler, hello: Request) -> tuple[Answer, Request]:
    """Return the first answer and its request, whose limit may need another name (OpenAI's newer models)."""
    try:
        try:
            return await scheduler.ask(hello, retries=_RETRIES), hello
        except RequestFailed as failure:
            if "max_completion_tokens" not in failure.detail:
                raise
            hello = replace(hello, limit_key="max_completion_tokens")
            return await scheduler.ask(hello, retries=_RETRIES), hello
    except Stopped as stopped:
        raise stopped.reason from None
    except RequestFailed as failure:
        raise UnavailableError(
            f"the server cannot be used: {failure}",
            where=scheduler.spec.base_url,
            next=_remedy(failure, scheduler.spec),
        ) from None


def _remedy(failure: RequestFailed, spec: OpenAITeacher) -> str:
    if re.match(r"HTTP 4", failure.kind):
        return "read the server's message; it may need the other teacher.api, completions or chat"
    return f"check that it is running: curl {spec.base_url}/models"


async def _tried(scheduler: RequestScheduler, request: Request) -> Answer | None:
    """Return the answer, or None if the server refuses the request or omits what was requested."""
    try:
        return await scheduler.ask(request, retries=_RETRIES)
    except Stopped as stopped:
        raise stopped.reason from None
    except RequestFailed as failure:
        if failure.kind == "malformed answer" or re.match(r"HTTP (4|5)", failure.kind):
            return None
        raise UnavailableError(
            f"the server cannot be used: {failure}",
            where=scheduler.spec.base_url,
            next=_remedy(failure, scheduler.spec),
        ) from None
