"""Send one request to the server through the openai client, and return its answer or the kind of its failure.

The client's own retries are off: it does not notice an answer that is valid HTTP but incomplete, nor does it know what
retries cost. `request_scheduler` repeats requests after either kind of failure.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import re
import time
from dataclasses import dataclass, replace
from typing import Any

import openai

from distillctl.errors import UnavailableError
from distillctl.recipe import OpenAITeacher
from distillctl.teachers.openai import http, protocol
from distillctl.teachers.openai.protocol import Answer, Impossible, Malformed, Request
from distillctl.trust import approvals, providers

IMPOSSIBLE = "impossible log-probabilities"
"""The kind of failure when another model than the expected one answers."""
_SHOWN = 300
_NAME_CHARACTERS = 256
"""Longest model name from a server that is stored, in characters."""
_NO_KEY = "none"
_PLACEHOLDER = re.compile(r"[A-Za-z]{1,7}|.{1,3}", re.DOTALL)
"""Keys that are ordinary words, as local servers get them: none, EMPTY, ollama, test, x."""


@dataclass
class RequestFailed(Exception):
    """A request without an answer. kind: a few words to count by. after: seconds that the server asks to wait."""

    kind: str
    detail: str = ""
    again: bool = True
    """Whether to try again."""
    fatal: bool = False
    """Whether every other request would fail too."""
    paid: bool = False
    """Whether the server may have done the work and charged for it."""
    after: float | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


class Client:
    """A connection pool to one server. `RequestFailed` never contains the key; the server's answers are data."""

    def __init__(self, spec: OpenAITeacher) -> None:
        self.spec = spec
        self._key = key(spec)
        self._client = openai.AsyncOpenAI(
            api_key=self._key or _NO_KEY,
            base_url=spec.base_url,
            timeout=spec.timeout_seconds,
            max_retries=0,
            http_client=http.BoundedClient(),
            default_headers=_headers(spec, self._key or _NO_KEY),
        )
        if not _is_openai(spec):
            self._client.organization = self._client.project = None

    async def send(self, request: Request) -> Answer:
        """Send a request and return the whole answer. Raise RequestFailed otherwise."""
        try:
            async with asyncio.timeout(self.spec.timeout_seconds) as deadline:
                answer = protocol.parse(await self._bytes(request), request)
                if asyncio.get_running_loop().time() > (deadline.when() or 0.0):  # a timer cannot interrupt parsing
                    raise TimeoutError
                # These two are not part of the answer; they go into the manifest.
                model, fingerprint = (
                    name and redacted(name, self._key)[:_NAME_CHARACTERS]
                    for name in (answer.model, answer.system_fingerprint)
                )
                return replace(answer, model=model, system_fingerprint=fingerprint)
        except http.Redirected as error:
            raise RequestFailed("redirect", self.shown(error.to), again=False, fatal=True) from None
        except (TimeoutError, openai.APITimeoutError):
            raise RequestFailed("timeout", f"no whole answer in {self.spec.timeout_seconds:g} s", paid=True) from None
        except Impossible as error:
            raise RequestFailed(IMPOSSIBLE, self.shown(str(error)), again=False, fatal=True, paid=True) from None
        except (Malformed, http.Unbounded, http.Unreadable) as error:
            raise RequestFailed("malformed answer", self.shown(str(error)), paid=True) from None
        except openai.APIStatusError as error:
            raise self._refused(error) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            if type(cause).__name__ in ("ConnectError", "ConnectTimeout", "ProxyError"):
                raise RequestFailed("no connection", self.shown(str(cause))) from None
            raise RequestFailed("connection cut", self.shown(str(cause)), paid=True) from None
        except openai.OpenAIError as error:
            raise RequestFailed("malformed answer", self.shown(str(error)), paid=True) from None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _bytes(self, request: Request) -> bytes:
        """Return the body of the answer."""
        resource: Any = self._client.chat.completions if request.api == "chat" else self._client.completions
        body = request.body
        extra_body = {name: body.pop(name) for name in request.extra if name in body}
        with http.at_most(request.most_bytes):
            async with resource.with_streaming_response.create(**body, extra_body=extra_body or None) as response:
                content: bytes = await response.read()
        return content

    def _refused(self, error: openai.APIStatusError) -> RequestFailed:
        status, code = error.status_code, getattr(error, "code", None)
        no_money = status == 402 or (status == 429 and code == "insufficient_quota")
        return RequestFailed(
            f"HTTP {status}",
            self.shown(error.message),
            again=status in (408, 409, 429) or status >= 500,
            fatal=status in (401, 403, 404) or no_money,
            after=retry_after(error.response.headers),
        )

    def shown(self, text: str) -> str:
        """Return a message as one short line without the key."""
        text = " ".join(redacted(text, self._key).split())
        return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _is_openai(spec: OpenAITeacher) -> bool:
    return providers.owns(spec.host, "OPENAI_API_KEY")


def _headers(spec: OpenAITeacher, key: str) -> Any:
    """Return headers that override those which the openai client finds in the environment.

    They are for OpenAI's own API, and may hold keys.
    """
    if _is_openai(spec):
        return None
    lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
    names = [line.partition(":")[0].strip() for line in lines if ":" in line]
    return {name: f"Bearer {key}" if name.lower() == "authorization" else openai.Omit() for name in names}


def redacted(text: str, key: str | None) -> str:
    """Return a message without the key.

    A key that is a plain word is no secret, and messages would be unreadable without the word, so it is only replaced
    where it is used as a key.
    """
    if not key:
        return text
    if not _PLACEHOLDER.fullmatch(key):
        return text.replace(key, "[key]")
    return re.sub(rf"(?<=Bearer ){re.escape(key)}(?!\w)", "[key]", text)


def key(spec: OpenAITeacher) -> str | None:
    """Return the key from the environment, or None if none is needed. Nothing else reads it.

    Raises UnavailableError if it is missing, RecipeError if it may not be sent to the server's host.
    """
    if spec.api_key_env is None:
        return None
    key = os.environ.get(spec.api_key_env, "").strip()
    if key:
        approvals.require_key(spec)
    if key or spec.is_local:
        return key or None
    raise UnavailableError(
        f"the environment variable {spec.api_key_env} has no key",
        where="teacher.api_key_env",
        next=f"export {spec.api_key_env}=…, or set api_key_env: null for a server that needs none",
    )


def retry_after(headers: Any) -> float | None:
    """Return the seconds that the server asks to wait: from now, or until a date (RFC 9110, 10.2.3)."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / scale
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
            except (ValueError, TypeError, OverflowError):
                continue
        if 0 <= seconds < float("inf"):
            return seconds
    return None
