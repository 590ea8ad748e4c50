"""A server that misbehaves over HTTP: bounded bytes, one deadline for all of a request, and no way to another host."""

import asyncio
import contextlib
import functools
import gzip
import json
import re
import socket
import threading
import time
import zlib

import pytest

from distillctl.errors import UnavailableError
from distillctl.recipe import OpenAITeacher
from distillctl.teachers.openai import http, protocol
from distillctl.teachers.openai.client import Client, RequestFailed
from distillctl.teachers.openai.protocol import Malformed, Request
from distillctl.teachers.openai.request_scheduler import RequestScheduler
from distillctl.teachers.openai.response_cache import ResponseCache
from tests.fixtures.costs import bounded

SECRET = "sk-very-secret-0123456789"
LOGPROBS = {"tokens": ["a"], "token_logprobs": [-0.1], "top_logprobs": [{"a": -0.1}]}
ANSWER = json.dumps({"choices": [{"text": "a", "finish_reason": "stop", "logprobs": LOGPROBS}]}).encode()
REQUEST = Request(api="completions", model="m", prompt="the king", max_tokens=3, top_logprobs=5)


class Raw:
    """A server on loopback that answers every request by what ``say`` writes to its socket."""

    def __init__(self, say):
        self.say, self.requests, self._closing = say, [], threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._closing.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _serve(self):
        with contextlib.ExitStack() as open_sockets:
            while True:
                try:
                    connection, _ = self._socket.accept()
                except OSError:
                    return
                open_sockets.callback(connection.close)
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection):
        received = b""
        while not _is_whole(received):
            if not (part := connection.recv(65536)):
                return
            received += part
        self.requests.append(received.decode())
        with contextlib.suppress(OSError):
            self.say(connection, received.split(b" ")[1].decode(), self._closing)
            connection.close()


def _is_whole(request):
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    return bool(end) and len(body) >= (int(length[1]) if length else 0)


def response(body=b"", status="200 OK", **headers):
    names = {"Content-Length": len(body), "Connection": "close"}
    names |= {name.replace("_", "-"): value for name, value in headers.items()}
    return f"HTTP/1.1 {status}\r\n".encode() + b"".join(
        f"{name}: {value}\r\n".encode() for name, value in names.items() if value is not None
    ) + b"\r\n" + body  # fmt: skip


def says(data):
    return lambda connection, path, closing: connection.sendall(data)


def endless(first, part, seconds=0.0):
    def say(connection, path, closing):
        connection.sendall(first)
        while not closing.is_set():
            connection.sendall(part)
            time.sleep(seconds)

    return say


def send(url, *, request=REQUEST, **spec):
    spec = OpenAITeacher(
        kind="openai", model="m", base_url=url, **{"api": "completions", "timeout_seconds": 60, **spec}
    )

    async def run():
        client = Client(spec)
        try:
            return await client.send(request)
        finally:
            await client.close()

    return asyncio.run(run())


# ── bytes ────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def _packed(size):
    """A gzip body of ``size`` zeros, made in parts."""
    pack = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(pack.compress(bytes(1 << 20)) for _ in range(size >> 20)) + pack.flush()


@pytest.mark.parametrize("status", ["400 Bad Request", "404 Not Found", "500 Oops"])
@pytest.mark.parametrize("chunked", [False, True])
def test_of_an_error_no_more_than_its_beginning_is_read(status, chunked):
    said = b'{"error": {"message": "too long: ' + b"x" * 1000
    if chunked:
        first = response(status=status, Content_Length=None, Transfer_Encoding="chunked")
        part = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        data = endless(first + b"%x\r\n%b\r\n" % (len(said), said), part)
    else:
        data = endless(response(status=status, Content_Length=3_000_000_000) + said, b"x" * 65536)
    with bounded(memory=64 << 20), Raw(data) as server, pytest.raises(RequestFailed, match=f"HTTP {status[:3]}"):
        send(server.url)


@pytest.mark.parametrize(
    ("status", "told"),
    [("200 OK", "more than"), ("400 Bad Request", "HTTP 400"), ("302 Found", "more than")],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_body_of_200_megabytes_takes_no_memory(status, told, packed):
    if packed:
        data = says(response(_packed(200 << 20), status, Content_Encoding="gzip"))
    else:
        data = endless(response(status=status, Content_Length=200 << 20), b" " * 65536)
    with bounded(memory=96 << 20), Raw(data) as server, pytest.raises(RequestFailed, match=told):
        send(server.url)


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip", "x" * 500, "gzip;q=1"])
def test_an_encoding_that_was_not_asked_for_is_no_answer(encoding):
    with Raw(says(response(ANSWER, Content_Encoding=encoding))) as server:
        with pytest.raises(RequestFailed, match="malformed answer: packed as"):
            send(server.url)
        assert "accept-encoding: gzip\r\n" in server.requests[0].lower()


def test_a_body_that_does_not_unpack_is_no_answer():
    with (
        Raw(says(response(ANSWER, Content_Encoding="gzip"))) as server,
        pytest.raises(RequestFailed, match="does not unpack"),
    ):
        send(server.url)


@pytest.mark.parametrize("encoding", [None, "identity", "gzip", "GZIP"])
def test_a_whole_answer_is_taken_packed_or_not(encoding):
    body = gzip.compress(ANSWER) if encoding and "gzip" in encoding.lower() else ANSWER
    with Raw(says(response(body, Content_Encoding=encoding))) as server:
        assert send(server.url) == protocol.parse(ANSWER, REQUEST)


@pytest.mark.slow
def test_an_answer_may_be_as_long_as_what_was_asked_for():
    """20 likely tokens at each of 2,000 positions, four times: some 20 MB, more than a short question's answer may
    have."""
    token = {"token": " word", "logprob": -1.2345678901234567, "bytes": [32, 119, 111, 114, 100]}
    top = [{**token, "token": f"{n}", "bytes": list(str(n).encode()), "logprob": -4.0} for n in range(20)]
    content = [{**token, "top_logprobs": top}] * 2000
    choice = {"message": {"content": " word" * 2000}, "finish_reason": "length", "logprobs": {"content": content}}
    body = json.dumps({"choices": [{**choice, "index": n} for n in range(4)]}).encode()
    long = Request(api="chat", model="m", prompt="x", max_tokens=2000, n=4, top_logprobs=20)
    assert REQUEST.most_bytes < len(body) < long.most_bytes
    with Raw(says(response(gzip.compress(body, 1), Content_Encoding="gzip"))) as server:
        assert len(send(server.url, request=long, api="chat").choices) == 4
        with pytest.raises(RequestFailed, match="more than"):
            send(server.url)


def test_names_of_the_model_stay_short():
    body = json.dumps({**json.loads(ANSWER), "model": "m" * 100_000, "system_fingerprint": "f" * 100_000}).encode()
    with Raw(says(response(body))) as server:
        found = send(server.url)
    assert len(found.model) == len(found.system_fingerprint) == 256


BOMBS = {
    "empty lists": b'{"choices":[' + b"[]," * (1 << 20) + b"[]]}",
    "numbers": b'{"choices":[' + b"1," * (1 << 20) + b"1]}",
    "texts for numbers": ANSWER.replace(
        b'{"a": -0.1}', b"{" + b",".join(b'"%d":"x"' % n for n in range(200_000)) + b"}"
    ),
    "digits": b'{"choices":[],"x":' + b"9" * (4 << 20) + b"}",
    "depth": b'{"choices":' + b"[" * (4 << 20),
    "a list for each token": ANSWER.replace(b'["a"]', b"[" + b"[]," * (1 << 20) + b"[]]"),
}


@pytest.mark.parametrize("what", BOMBS)
def test_what_is_no_answer_costs_little_to_tell(what):
    with bounded(memory=256 << 20), pytest.raises(Malformed) as error:
        protocol.parse(BOMBS[what], REQUEST)
    assert len(str(error.value)) < 500


# ── time ─────────────────────────────────────────────────────────────────────────────────────────

DRIP = 0.02
SLOW = {
    "no answer": lambda connection, path, closing: closing.wait(),
    "a status line without end": endless(b"HTTP/1.1 200 ", b"O", DRIP),
    "a header without end": endless(b"HTTP/1.1 200 OK\r\nX: ", b"x", DRIP),
    "headers without end": endless(b"HTTP/1.1 200 OK\r\n", b"X-Y: z\r\n", DRIP),
    "continue without end": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", DRIP),
    "a body drop by drop": endless(response(Content_Length=10_000), b" ", DRIP),
    "an error drop by drop": endless(response(status="500 Oops", Content_Length=10_000), b" ", DRIP),
    "chunks drop by drop": endless(response(Content_Length=None, Transfer_Encoding="chunked"), b"1\r\n \r\n", DRIP),
    "packed nothing": endless(
        response(Content_Length=10**9, Content_Encoding="gzip") + gzip.compress(b"")[:10], b"\0\0\0\xff\xff" * 20, DRIP
    ),
}


@pytest.mark.parametrize("what", SLOW)
def test_one_deadline_holds_for_all_of_a_request(what):
    began = time.monotonic()
    with Raw(SLOW[what]) as server, pytest.raises(RequestFailed, match=r"timeout: no whole answer in 0\.6 s"):
        send(server.url, timeout_seconds=0.6)
    assert time.monotonic() - began > 0.5


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\n" + b"X-Y: z\r\n" * 40_000, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 400_000]
)
def test_headers_are_bounded_too(head):
    with Raw(endless(head, b"X-Y: z\r\n" * 1000)) as server, pytest.raises(RequestFailed, match="connection cut"):
        send(server.url)


def test_parsing_counts(monkeypatch):
    def slowly(body, request):
        time.sleep(0.5)
        return protocol.Answer((), None, None, None)

    monkeypatch.setattr(protocol, "parse", slowly)
    with (
        Raw(says(response(ANSWER))) as server,
        pytest.raises(RequestFailed, match=r"timeout: no whole answer in 0\.3 s"),
    ):
        send(server.url, timeout_seconds=0.3)


# ── to another host ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_nothing_goes_to_another_host(tmp_path, monkeypatch, status):
    monkeypatch.setenv("SOME_KEY", SECRET)
    with Raw(says(response(ANSWER))) as other:
        with Raw(says(response(status=status, Location=f"{other.url}/completions"))) as server:
            spec = OpenAITeacher(
                kind="openai", model="m", base_url=server.url, api="completions", api_key_env="SOME_KEY"
            )

            async def ask():
                scheduler = RequestScheduler(
                    spec, Client(spec), ResponseCache(tmp_path / "answers.jsonl"), "distillctl collect RECIPE"
                )
                try:
                    await scheduler.ask(REQUEST)
                finally:
                    await scheduler.client.close()
                    scheduler.cache.close()

            with pytest.raises(Exception, match="sends requests on to") as error:
                asyncio.run(ask())
        assert len(server.requests) == 1  # asking again would not help
        assert not other.requests
    reason = error.value.reason
    assert isinstance(reason, UnavailableError)
    assert other.url in reason.what
    assert "teacher.base_url" in reason.next
    assert SECRET not in f"{reason}{reason.next}"


@pytest.mark.parametrize(
    "location",
    ["//localhost:{port}/v1", "http://localhost:{port}/v1", "https://127.0.0.1:{port}/v1", "http://127.0.0.1:9/v1",
     "http://user:pass@127.0.0.2:{port}/", "ftp://127.0.0.1/x", "file:///etc/passwd", "gopher://x", "http://[", "\x7f"],
)  # fmt: skip
def test_another_scheme_host_or_port_is_another_server(location):
    with Raw(lambda connection, path, closing: connection.sendall(moved)) as server:
        moved = response(status="307 Moved", Location=location.format(port=server.port))
        with pytest.raises(RequestFailed, match="redirect"):
            send(server.url)
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", ["307 Temporary", "308 Permanent"])
def test_another_path_of_the_same_server_is_followed(status):
    def say(connection, path, closing):
        moved = response(status=status, Location="/other/completions")
        connection.sendall(response(ANSWER) if path == "/other/completions" else moved)

    with Raw(say) as server:
        assert send(server.url) == protocol.parse(ANSWER, REQUEST)
        assert [line.split()[1] for line in server.requests] == ["/v1/completions", "/other/completions"]


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other"])
def test_a_redirect_that_turns_the_question_into_another_is_not_followed(status):
    with (
        Raw(says(response(status=status, Location="/other"))) as server,
        pytest.raises(RequestFailed, match="redirect"),
    ):
        send(server.url)


def test_a_redirect_to_itself_ends():
    with Raw(says(response(status="307 Moved", Location="/v1/completions"))) as server:
        with pytest.raises(RequestFailed, match="redirect"):
            send(server.url)
        assert len(server.requests) <= 2 + http._REDIRECTS
