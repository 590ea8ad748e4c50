"""What a server grants, asked once with a question of a few tokens before anything is paid for."""

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
from distillctl.teachers.openai.client import Fault
from distillctl.teachers.openai.protocol import Answer, LimitKey, Request
from distillctl.teachers.openai.request_scheduler import Asker, Stopped
from distillctl.untrusted import limits

_HELLO = "1 2 3 4"
_FEWER = (20, 10, 5, 2, 1)
"""Of the likeliest tokens, where the server refuses as many as are wanted: OpenAI's limits are 20 and 5."""
_RETRIES = 4
_SAME = 0.05
"""Nats between two answers' log-probabilities that are rounding."""


class Grants(BaseModel):
    """top_logprobs: so many of the likeliest tokens may be asked for, 0: none; shown: so many it showed; samples:
    whether one request brings several answers; model, system_fingerprint: as the server names them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    asked: str
    """What they were asked of: a digest of the teacher's identity and of what was wanted."""
    model: str | None
    system_fingerprint: str | None
    top_logprobs: int
    shown: int
    samples: bool
    untempered: bool
    """Whether its log-probabilities are those before a request's temperature."""
    usage: bool
    limit_key: LimitKey

    def told(self, spec: OpenAITeacher) -> str:
        """In one line."""
        shown = f"the {self.shown} likeliest tokens of each position" if self.top_logprobs else "no probabilities"
        named = "" if self.model in (None, spec.model) else f" (as {self.model})"
        return f"{spec.base_url} grants {shown} of {spec.model}{named}, by its {spec.api} API"


@dataclass(frozen=True)
class Wanted:
    """What the task wants: log-probabilities, several answers to a request, log-probabilities at a temperature."""

    logprobs: bool
    samples: bool = False
    temperature: float = 1.0

    def key(self, spec: OpenAITeacher) -> str:
        """`Grants.asked` of such a question."""
        return digest([spec.identity, self.logprobs, self.samples, self.temperature])


async def ask(asker: Asker, wanted: Wanted) -> Grants:
    """Ask the server. UnavailableError when it cannot be used."""
    spec = asker.spec
    hello = Request(spec.api, spec.model, _HELLO, max_tokens=1, seed=spec.seed, extra=spec.further_keys)
    answer, hello = await _plain(asker, hello)
    granted = shown = 0
    for count in _counts(spec.top_logprobs) if wanted.logprobs else ():
        found = await _tried(asker, replace(hello, top_logprobs=count))
        if found is not None:
            answer, granted = found, count
            shown = min([count, *(len(position.top) for position in found.choices[0].positions[:1])])
            break
        if "malformed answer" in asker.faults:  # it did not refuse, it left them out
            break
    several = wanted.samples and await _tried(asker, replace(hello, n=2, temperature=1.0)) is not None
    untempered = True
    if granted and wanted.temperature != 1:
        tempered = await _tried(asker, replace(hello, top_logprobs=granted, temperature=wanted.temperature))
        untempered = tempered is not None and _apart(answer, tempered) < _SAME
    return Grants(
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
"""Of the likeliest tokens, for rows whose labels are not among those that the recipe asks for."""


async def more(asker: Asker, granted: Grants) -> int:
    """How many of the likeliest tokens the server shows beyond those that the recipe asks for; 0 where no more."""
    if granted.top_logprobs < asker.spec.top_logprobs or granted.shown < granted.top_logprobs:
        return 0  # it has refused as many already
    for count in (count for count in MORE if count > granted.top_logprobs):
        found = await _tried(asker, replace(_hello(asker.spec, granted), top_logprobs=count))
        if found is not None:
            shown = len(found.choices[0].positions[0].top) if found.choices[0].positions else 0
            return count if shown > granted.shown else 0
    return 0


async def echoes(asker: Asker, granted: Grants) -> bool:
    """Whether the server gives the log-probabilities of a prompt's own tokens."""
    if asker.spec.api == "chat":
        return False
    found = await _tried(asker, replace(_hello(asker.spec, granted), top_logprobs=1, echo=len(" 4")))
    return found is not None and bool(found.choices[0].positions)


def _hello(spec: OpenAITeacher, granted: Grants) -> Request:
    return Request(
        spec.api, spec.model, _HELLO, max_tokens=1, seed=spec.seed, limit_key=granted.limit_key, extra=spec.further_keys
    )


def _apart(one: Answer, other: Answer) -> float:
    """The largest difference of a token's log-probability at the first position, in nats; 0 where none is shown."""
    tops = [dict(position.top) for answer in (one, other) for position in answer.choices[0].positions[:1]]
    if len(tops) < 2:
        return 0.0
    return max((abs(tops[0][token] - tops[1][token]) for token in tops[0] if token in tops[1]), default=math.inf)


def read(path: Path, asked: str) -> Grants | None:
    """Those of an earlier run that asked the same."""
    try:
        document, _ = checksums.read(limits.read_bytes(path, 1 << 20))
        found = Grants.model_validate(document)
    except (OSError, ValueError):
        return None
    return found if found.asked == asked else None


def write(path: Path, grants: Grants) -> None:
    write_text(path, checksums.put(grants.model_dump_json(indent=2)))


def _counts(wanted: int) -> list[int]:
    return [wanted, *(count for count in _FEWER if count < wanted)]


async def _plain(asker: Asker, hello: Request) -> tuple[Answer, Request]:
    """The first answer, and the request that it answers: OpenAI's newer models want the limit under another name."""
    try:
        try:
            return await asker.ask(hello, retries=_RETRIES), hello
        except Fault as fault:
            if "max_completion_tokens" not in fault.detail:
                raise
            hello = replace(hello, limit_key="max_completion_tokens")
            return await asker.ask(hello, retries=_RETRIES), hello
    except Stopped as stopped:
        raise stopped.reason from None
    except Fault as fault:
        raise UnavailableError(
            f"the server cannot be used: {fault}",
            where=asker.spec.base_url,
            next=_mend(fault, asker.spec),
        ) from None


def _mend(fault: Fault, spec: OpenAITeacher) -> str:
    if re.match(r"HTTP 4", fault.kind):
        return "look at what it says; teacher.api: completions or chat may be the other one"
    return f"is it running? curl {spec.base_url}/models"


async def _tried(asker: Asker, request: Request) -> Answer | None:
    """None where the server does not do it: it refuses, or leaves it out."""
    try:
        return await asker.ask(request, retries=_RETRIES)
    except Stopped as stopped:
        raise stopped.reason from None
    except Fault as fault:
        if fault.kind == "malformed answer" or re.match(r"HTTP (4|5)", fault.kind):
            return None
        raise UnavailableError(
            f"the server cannot be used: {fault}", where=asker.spec.base_url, next=_mend(fault, asker.spec)
        ) from None
