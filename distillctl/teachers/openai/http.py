"""HTTP with an untrusted server: bodies take no more memory than the request explains, and come from no other host.

The openai client reads an error's whole body, unpacks whatever a server has packed, and follows every redirect with the
prompt. `BoundedClient` below it does not.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import openai

ERROR_BYTES = 64 * 2**10
"""Number of bytes of an error's body that are read."""
MOST_BYTES = 64 * 2**20
"""Maximal size of an answer."""
_REDIRECTS = 3
_most: ContextVar[int] = ContextVar("_most", default=MOST_BYTES)


class Unbounded(Exception):
    """The body has more bytes, packed or unpacked, than an answer to the request can have."""


class Unreadable(Exception):
    """The body is packed in a way that was not requested, or cannot be unpacked."""


class Redirected(Exception):
    """The server redirects the request to another address."""

    def __init__(self, to: str) -> None:
        super().__init__(to)
        self.to = to


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Limit the bodies of answers to ``size`` bytes within the block, in this task."""
    token = _most.set(min(size, MOST_BYTES))
    try:
        yield
    finally:
        _most.reset(token)


class BoundedClient(openai.DefaultAsyncHttpxClient):
    """An HTTP client whose responses are read whole and unpacked, within `at_most` (errors: `ERROR_BYTES`).

    It follows redirects to other paths of the same scheme, host and port, with the same method. For any other it raises
    `Redirected`, and sends nothing there.
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
    """Return the request for a redirect. Raise Redirected unless it is for the same server, with the same method."""
    following = response.next_request
    if following is None or _origin(following.url) != _origin(request.url) or following.method != request.method:
        raise Redirected(response.headers["location"][:200])
    return following


def _origin(url: Any) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


async def _whole(response: Any) -> Any:
    """Return the response with its body read and unpacked; of an error's body only the beginning."""
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
    """Return a function that unpacks a part of a body into pieces, of which so many bytes are wanted."""
    if encoding.strip().lower() in ("", "identity"):
        return lambda part, most: [part]
    if encoding.strip().lower() not in ("gzip", "x-gzip"):
        raise Unreadable(f"packed as {encoding[:40]!r}, which was not requested")
    inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)

    def unpack(part: bytes, most: int) -> Iterator[bytes]:
        try:
            while part and not inflate.eof:
                yield inflate.decompress(part, most + 1)  # bounded, because small parts can unpack to a lot
                part = inflate.unconsumed_tail
        except zlib.error as error:
            raise Unreadable(f"does not unpack: {error}") from None

    return unpack
