"""HTTP with a stranger's server: no body takes more memory than its question explains, none comes from another host.

The openai client reads the body of an error whole, unpacks what a server has packed, and follows wherever it is sent,
with the prompt. `BoundedClient` stands under it and does none of that.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import openai

ERROR_BYTES = 64 * 2**10
"""Of an error's body as much is read; the rest is left."""
MOST_BYTES = 64 * 2**20
"""Of any one answer."""
_REDIRECTS = 3
_most: ContextVar[int] = ContextVar("_most", default=MOST_BYTES)


class Unbounded(Exception):
    """The body has more bytes, as they come or unpacked, than an answer to the question can have."""


class Unreadable(Exception):
    """The body is packed in a way that was not asked for, or that does not unpack."""


class Redirected(Exception):
    """The server sends the question to another address."""

    def __init__(self, to: str) -> None:
        super().__init__(to)
        self.to = to


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Bodies of answers within the block, in this task, may have ``size`` bytes."""
    token = _most.set(min(size, MOST_BYTES))
    try:
        yield
    finally:
        _most.reset(token)


class BoundedClient(openai.DefaultAsyncHttpxClient):
    """An HTTP client whose responses have been read whole, unpacked, within `at_most` (errors: `ERROR_BYTES`).

    A redirect is followed to another path of the same scheme, host and port, where the method stays POST; any other is
    `Redirected`, and nothing has been sent there.
    """

    async def send(self, request: Any, *, stream: bool = False, follow_redirects: Any = None, **options: Any) -> Any:
        """Send a request and follow redirects on the same host alone."""
        request.headers["Accept-Encoding"] = "gzip"
        for _ in range(_REDIRECTS + 1):
            response = await super().send(request, stream=True, follow_redirects=False, **options)
            try:
                if not response.has_redirect_location:
                    return await _whole(response)
                request = _elsewhere(request, response)
            finally:
                await response.aclose()
        raise Redirected(f"{request.url}, after {_REDIRECTS} other redirects")


def _elsewhere(request: Any, response: Any) -> Any:
    """The request that a redirect asks for; Redirected where it is not for the same server, or not the same request."""
    following = response.next_request
    if following is None or _origin(following.url) != _origin(request.url) or following.method != request.method:
        raise Redirected(response.headers["location"][:200])
    return following


def _origin(url: Any) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


async def _whole(response: Any) -> Any:
    """The same response with its body read and unpacked. Of an error no more than its beginning."""
    is_error = response.status_code >= 400
    most = ERROR_BYTES if is_error else _most.get()
    body = bytearray()
    unpack = _unpacker(response.headers.get("content-encoding", ""))
    async for part in response.aiter_raw():
        for piece in unpack(part, most):
            body += piece
            if len(body) > most:
                break
        if len(body) > most:
            if not is_error:
                raise Unbounded(f"more than {most:,} bytes")
            del body[most:]
            break
    headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in _OF_THE_BODY]
    return type(response)(
        response.status_code,
        headers=[*headers, ("content-type", "application/json; charset=utf-8")],
        content=bytes(body),
        request=response.request,
    )


_OF_THE_BODY = ("content-encoding", "content-length", "content-type", "transfer-encoding")


def _unpacker(encoding: str) -> Any:
    """A function from a part of a body, and the most bytes that are wanted, to its unpacked pieces."""
    if encoding.strip().lower() in ("", "identity"):
        return lambda part, most: [part]
    if encoding.strip().lower() not in ("gzip", "x-gzip"):
        raise Unreadable(f"packed as {encoding[:40]!r}, which was not asked for")
    inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)

    def unpack(part: bytes, most: int) -> Iterator[bytes]:
        try:
            while part and not inflate.eof:
                yield inflate.decompress(part, most + 1)  # never more at once, however small it was packed
                part = inflate.unconsumed_tail
        except zlib.error as error:
            raise Unreadable(f"does not unpack: {error}") from None

    return unpack
