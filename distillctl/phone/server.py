"""Serve the page: a closed table of paths behind a secret, with the standard library's HTTP server.

Every request has the token as the first part of its path, so the page's own addresses can be relative, and no cookie is
needed. Host, token, path, method, type and size are checked before the body of a request is read.
"""

from __future__ import annotations

import hmac
import io
import json
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distillctl import console
from distillctl.errors import UserFacingError
from distillctl.phone import devices
from distillctl.phone.messages import MAX_BYTES, Device, Results

PAGE = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
}
HEADERS = {
    # Only the page's own parts: no inline code, no other origin, no frame. WebAssembly must be allowed.
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; "
    "connect-src 'self'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    # Without isolation from other origins there are no threads.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
MAX_SESSIONS, MAX_CONNECTIONS = 64, 64
REQUEST_SECONDS = 20.0
"""Time limit for receiving a whole request, and for sending each piece of an answer."""
CHUNK_BYTES = 1 << 18


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, why: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(why)
        self.status, self.why, self.headers = status, why, headers or {}


class PhoneServer(ThreadingHTTPServer):
    """A server that is bound and ready. Call `serve_forever` in a thread, then `shutdown`.

    files: name in the address → file. task: the page's task; each page also gets a session id. store: called with a
    session's id, device and results, one call at a time; it returns the answer, or raises ValueError if the page is at
    fault. ``token`` is the secret, ``active`` the time of the last request with it (monotonic seconds), ``answered``
    the number of results that were stored and acknowledged, ``failure`` an error of our own or of this machine.
    ``changed`` is set when one of the last two changes.
    """

    daemon_threads = True
    request_queue_size = 32

    def __init__(
        self,
        address: tuple[str, int],
        hosts: frozenset[str],
        files: Mapping[str, Path],
        task: Mapping[str, object],
        store: Callable[[str, Device, Results], Mapping[str, Any]],
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)
        port = self.server_address[1]
        self.token = secrets.token_urlsafe(16)
        # Browsers omit port 80 in the Host header.
        self.hosts = frozenset(f"{host}:{port}" for host in hosts) | (hosts if port == 80 else frozenset())
        self.files = dict(files) | {
            "": PAGE / "index.html",
            **{name: PAGE / name for name in ("page.js", "measure.js", "style.css")},
        }
        self.task, self.active, self.answered = dict(task), time.monotonic(), 0
        self.failure: BaseException | None = None
        self.changed = threading.Event()
        self._store = store
        self._lock = threading.Lock()
        self._sessions: dict[str, Device | None] = {}
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def start(self, device: Device) -> dict[str, Any]:
        """Open a session for a page that was loaded."""
        with self._lock:
            if sum(device is not None for device in self._sessions.values()) >= MAX_SESSIONS:
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many pages are open")
            session = secrets.token_hex(8)
            self._sessions[session] = device
        console.note(f"{devices.name(device)} is measuring")
        return {"session": session, **self.task}

    def finish(self, session: str, results: Results) -> Mapping[str, Any]:
        """Store a session's results, once."""
        with self._lock:
            if session not in self._sessions:
                raise Refused(HTTPStatus.NOT_FOUND, "no such session")
            device = self._sessions[session]
            if device is None:
                raise Refused(HTTPStatus.CONFLICT, "this session has sent its results already")
            try:
                stored = self._store(session, device, results)
            except ValueError as error:
                raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from None
            self._sessions[session] = None
        return stored

    def failed(self, problem: BaseException) -> None:
        """Record an error for the thread that waits for ``changed``."""
        self.failure = self.failure or problem
        self.changed.set()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, or close the connection where too many are open."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, then make room for the next connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Report an error of ours."""
        problem = sys.exc_info()[1]
        if problem is not None and not isinstance(problem, OSError):  # an OSError means that the device went away
            self.failed(problem)


class _Handler(BaseHTTPRequestHandler):
    """Handle one request per connection: HTTP/1.0 keeps nothing open."""

    server: PhoneServer
    timeout = REQUEST_SECONDS

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_UntilDeadline(self.connection, REQUEST_SECONDS))

    def do_GET(self) -> None:
        self._guarded(self._get)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._guarded(self._post)

    def do_PUT(self) -> None:
        self._guarded(self._no_such_method)

    do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = do_PUT

    # ── routes ──

    def _get(self, name: str) -> None:
        path = self.server.files.get(name)
        if path is None:
            if self._target(name):
                raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "only POST", {"Allow": "POST"})
            raise Refused(HTTPStatus.NOT_FOUND, "not found")
        with path.open("rb") as file:
            size = path.stat().st_size
            self._head(HTTPStatus.OK, TYPES[path.suffix], size)
            if self.command != "HEAD":
                self.connection.settimeout(REQUEST_SECONDS)
                shutil.copyfileobj(file, self.wfile, CHUNK_BYTES)

    def _post(self, name: str) -> None:
        target = self._target(name)
        if target is None:
            if name in self.server.files:
                raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", {"Allow": "GET, HEAD"})
            raise Refused(HTTPStatus.NOT_FOUND, "not found")
        answer = target(self._body())
        self._answer(HTTPStatus.OK, "application/json", json.dumps(answer).encode())
        if name != "session":  # only after the answer, because the waiting thread may end the process
            self.server.answered += 1
            self.server.changed.set()

    def _no_such_method(self, name: str) -> None:
        allowed = "POST" if self._target(name) else "GET, HEAD"
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"only {allowed}", {"Allow": allowed})

    def _target(self, name: str) -> Callable[[bytes], Mapping[str, Any]] | None:
        """Return the function that takes messages to this address, or None."""
        if name == "session":
            return lambda body: self.server.start(Device.model_validate_json(body))
        if name.startswith("results/"):
            session = name.removeprefix("results/")
            return lambda body: self.server.finish(session, Results.model_validate_json(body))
        return None

    # ── checks ──

    def _guarded(self, answer: Callable[[str], None]) -> None:
        try:
            answer(self._name())
        except Refused as refused:
            self._answer(refused.status, "text/plain; charset=utf-8", refused.why.encode(), refused.headers)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            why = f"{'.'.join(map(str, first['loc'])) or 'the message'}: {first['msg']}"
            self._answer(HTTPStatus.BAD_REQUEST, "text/plain; charset=utf-8", why.encode())
        except UserFacingError as error:  # such as a full disk: report it to the page and to the command
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", str(error).encode())
            self.server.failed(error)

    def _name(self) -> str:
        """Check Host and token, and return the rest of the path, undecoded, so that it cannot become another path."""
        # Another site can make its own name resolve to this machine, but cannot change the Host that browsers send.
        if (self.headers.get("Host") or "").lower() not in self.server.hosts:
            raise Refused(HTTPStatus.FORBIDDEN, "this server does not have that name")
        start, _, name = self.path.partition("?")[0].removeprefix("/").partition("/")
        if not hmac.compare_digest(start.encode(errors="surrogateescape"), self.server.token.encode()):
            raise Refused(HTTPStatus.FORBIDDEN, "the address is not complete: scan the code again")
        self.server.active = time.monotonic()
        return name

    def _body(self) -> bytes:
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
        length = self.headers.get("Content-Length")
        if length is None:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length")
        if not (length.isascii() and length.isdigit()):
            raise Refused(HTTPStatus.BAD_REQUEST, "the Content-Length is not a number")
        if len(length) > 12 or int(length) > MAX_BYTES:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MAX_BYTES} bytes")
        body = self.rfile.read(int(length))
        if len(body) != int(length):
            raise Refused(HTTPStatus.BAD_REQUEST, "the message is incomplete")
        return body

    # ── answers ──

    def _answer(self, status: int, kind: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self._head(status, kind, len(body), headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, kind: str, size: int, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(size), **HEADERS, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer the standard library's own refusals with our headers and without its page."""
        self._answer(code, "text/plain; charset=utf-8", HTTPStatus(code).phrase.encode())

    def version_string(self) -> str:
        return "distillctl"

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the token is part of every address."""


class _UntilDeadline(io.RawIOBase):
    """Read a socket until a deadline for all bytes, so that a slow sender cannot keep a thread."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection, self._deadline = connection, time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)
