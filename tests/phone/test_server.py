"""The server that hands out the page: what it lets in, and what it refuses. No browser."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distillctl.errors import UnavailableError, UsageError
from distillctl.phone import addresses, server
from distillctl.phone.messages import MAX_BYTES, Device, Results
from distillctl.phone.server import PhoneServer

DEVICE: dict[str, Any] = {
    "user_agent": "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Mobile",
    "model": "Pixel\u001b[2J 7",
    "screen": {"width": 390, "height": 844, "pixel_ratio": 2},
    "isolated": False,
    "gpu": False,
}
MEASURED: dict[str, Any] = {
    "backend": "wasm",
    "threads": 1,
    "load_ms": 10.0,
    "first_ms": 2.0,
    "milliseconds": [1.0, 2],
    "logits": [[0.5, 0.25]],
}
RESULTS: dict[str, Any] = {
    "download_ms": 1.0,
    "timer_ms": 0.1,
    "hidden": False,
    "measurements": [MEASURED],
    "failures": [],
}


class Served:
    """A server at work, and what it was given to store."""

    def __init__(self, folder: Path) -> None:
        (folder / "model.onnx").write_bytes(b"graph" * 1000)
        (folder / "secret.onnx").write_bytes(b"secret")
        self.stored: list[tuple[str, Device, Results]] = []
        files = {"model.onnx": folder / "model.onnx"}
        self.server = PhoneServer(("127.0.0.1", 0), frozenset({"127.0.0.1"}), files, {"labels": ["a", "b"]}, self.store)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        self.root = f"/{self.server.token}/"

    def store(self, session: str, device: Device, results: Results) -> dict[str, Any]:
        if len(results.measurements[0].logits[0]) != 2:
            raise ValueError("want 2 labels")
        if results.download_ms == 28:
            raise UnavailableError("cannot be written: no space")
        self.stored.append((session, device, results))
        return {"stored": True}

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes, Any]:
        """Status, body and headers of an answer; the path goes out as it stands."""
        connection = http.client.HTTPConnection(self.host, timeout=300)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        sent = {"Host": self.host, **({"Content-Length": str(len(body))} if body is not None else {})}
        for name, value in (sent | {name.replace("_", "-"): value for name, value in headers.items()}).items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        found = answer.status, answer.read(), answer.headers
        connection.close()
        return found

    def post(self, name: str, value: Any) -> tuple[int, Any]:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        status, answer, _ = self.ask("POST", self.root + name, body, Content_Type="application/json")
        return status, json.loads(answer) if status == 200 else answer.decode()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    found = Served(tmp_path)
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


# ── who is let in ────────────────────────────────────────────────────────────────────────────────


def test_the_page_and_all_it_names(served: Served) -> None:
    for name, kind in (("", "text/html"), ("page.js", "text/javascript"), ("measure.js", "text/javascript"),
                       ("style.css", "text/css"), ("model.onnx", "application/octet-stream")):  # fmt: skip
        status, body, headers = served.ask("GET", served.root + name)
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert int(headers["Content-Length"]) == len(body) > 0
        status, empty, headers = served.ask("HEAD", served.root + name)
        assert (status, empty, int(headers["Content-Length"])) == (200, b"", len(body))


@pytest.mark.parametrize("path", ["/", "/wrong/", "/wrong/model.onnx", "/model.onnx", "//", "/../etc/passwd"])
def test_without_the_token_nothing(served: Served, path: str) -> None:
    for method in ("GET", "HEAD", "POST", "PUT"):
        assert served.ask(method, path)[0] == 403
    assert served.ask("GET", served.root.swapcase())[0] == 403
    assert served.ask("GET", served.root[:-2] + "/")[0] == 403


def test_a_request_in_no_alphabet(served: Served) -> None:
    host, port = served.host.split(":")
    with socket.create_connection((host, int(port)), timeout=300) as raw:
        raw.sendall(f"GET /é\xff/ HTTP/1.0\r\nHost: {served.host}\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.0 403 ")
    assert served.server.failure is None


def test_the_token_is_long_and_new_each_time(served: Served, tmp_path: Path) -> None:
    with Served(tmp_path).server as other:
        assert other.token != served.server.token
        assert len(other.token) >= 22


@pytest.mark.parametrize(
    "name",
    ["../secret.onnx", "../../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/secret.onnx", "./model.onnx",
     "page/", "model.onnx/", "/etc/passwd", "//etc/passwd", "secret.onnx", "..\\secret.onnx", "model.onnx%00",
     "index.html", "server.py", "favicon.ico"],
)  # fmt: skip
def test_a_path_that_is_not_in_the_table_is_not_found(served: Served, name: str) -> None:
    status, body, _ = served.ask("GET", served.root + name)
    assert (status, body) == (404, b"not found")
    assert served.post(name, {})[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1:1", "localhost", ""])
def test_another_name_for_this_machine_is_refused(served: Served, host: str) -> None:
    assert served.ask("GET", served.root, Host=host)[0] == 403
    assert served.ask("POST", served.root + "session", b"{}", Host=host, Content_Type="application/json")[0] == 403


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_other_methods(served: Served, method: str) -> None:
    assert served.ask(method, served.root + "model.onnx")[0] == 405
    assert served.ask(method, served.root + "session")[2]["Allow"] == "POST"
    assert served.ask("POST", served.root, b"{}")[0] == 405
    assert served.ask("GET", served.root + "session")[0] == 405
    assert served.ask("BREW", served.root)[0] == 501


@pytest.mark.parametrize("path", ["", "nothing", "session"])
def test_every_answer_is_kept_to_itself(served: Served, path: str) -> None:
    headers = served.ask("GET", served.root + path)[2]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert "'unsafe-eval'" not in policy


# ── what a device may say ────────────────────────────────────────────────────────────────────────


def test_two_sessions_are_kept_apart_and_each_counts_once(served: Served) -> None:
    (_, one), (_, two) = served.post("session", DEVICE), served.post("session", {**DEVICE, "cores": 8})
    assert one["session"] != two["session"]
    assert one["labels"] == ["a", "b"]
    for given, load in ((two, 2.0), (one, 1.0)):
        measured = RESULTS | {"measurements": [MEASURED | {"load_ms": load}]}
        assert served.post(f"results/{given['session']}", measured) == (200, {"stored": True})
        assert served.post(f"results/{given['session']}", measured)[0] == 409
    assert [(session, device.cores, found.measurements[0].load_ms) for session, device, found in served.stored] == [
        (two["session"], 8, 2.0),
        (one["session"], None, 1.0),
    ]
    assert served.server.answered == 2
    assert served.post("results/0000", RESULTS)[0] == 404
    assert served.post("results/", RESULTS)[0] == 404


def test_what_a_device_calls_itself_gives_the_terminal_no_orders(served: Served) -> None:
    _, given = served.post("session", DEVICE)
    served.post(f"results/{given['session']}", RESULTS)
    assert served.stored[0][1].model == "Pixel [2J 7"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"more": 1}, "more"),
        ({"download_ms": "1"}, "download_ms"),
        ({"download_ms": float("nan")}, "download_ms"),
        ({"download_ms": -1.0}, "download_ms"),
        ({"measurements": [MEASURED | {"milliseconds": []}]}, "milliseconds"),
        ({"measurements": [MEASURED | {"milliseconds": [1.0] * 201}]}, "milliseconds"),
        ({"measurements": [MEASURED | {"logits": [[1e300, 0.0]]}]}, "logits"),
        ({"measurements": [MEASURED | {"logits": [[0.0, float("inf")]]}]}, "logits"),
        ({"measurements": [MEASURED | {"backend": "gl"}]}, "backend"),
        ({"measurements": [MEASURED] * 4}, "measurements"),
        ({"failures": [{"backend": "wasm", "threads": 1, "error": "x" * 2001}]}, "error"),
        ({"measurements": [MEASURED | {"logits": [[0.0]]}]}, "want 2 labels"),
    ],
)
def test_results_that_cannot_be_are_refused_and_may_be_mended(served: Served, change: Any, where: str) -> None:
    _, given = served.post("session", DEVICE)
    status, why = served.post(f"results/{given['session']}", RESULTS | change)
    assert status == 400
    assert where in why
    assert served.stored == []
    assert served.post(f"results/{given['session']}", RESULTS)[0] == 200


def test_bodies_that_are_no_message(served: Served) -> None:
    for body in (b"", b"{", b"[]", b"\xff", b'{"user_agent": 1}'):
        assert served.post("session", body)[0] == 400
    path, json_type = served.root + "session", {"Content_Type": "application/json"}
    assert served.ask("POST", path, b"{}", Content_Type="text/plain")[0] == 415
    assert served.ask("POST", path, None, **json_type)[0] == 411
    assert served.ask("POST", path, None, **json_type, Content_Length=str(MAX_BYTES + 1))[0] == 413
    assert served.ask("POST", path, None, **json_type, Content_Length="9" * 5000)[0] == 413
    for length in ("-1", "1e3", "١"):
        sent = length.encode().decode("latin-1")
        assert served.ask("POST", path, None, **json_type, Content_Length=sent)[0] == 400


def test_too_many_pages(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_SESSIONS", 2)
    assert [served.post("session", DEVICE)[0] for _ in range(3)] == [200, 200, 503]


def test_a_slow_request_is_cut_off(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.5)
    host, port = served.host.split(":")
    with socket.create_connection((host, int(port)), timeout=300) as slow:
        slow.sendall(b"GET / HTTP/1.0\r\n")
        assert slow.recv(1) == b""


def test_a_full_disk_is_told_to_the_page_and_to_the_command(served: Served) -> None:
    _, given = served.post("session", DEVICE)
    status, why = served.post(f"results/{given['session']}", RESULTS | {"download_ms": 28.0})
    assert status == 500
    assert "no space" in why
    assert served.server.changed.wait(300)  # after the page has been answered
    assert isinstance(served.server.failure, UnavailableError)


# ── where it listens ─────────────────────────────────────────────────────────────────────────────


def test_names_of_loopback_and_of_every_network() -> None:
    assert addresses.resolve("127.0.0.1") == "127.0.0.1"
    assert addresses.names("127.0.0.1", "127.0.0.1") == {"127.0.0.1", "localhost", "[::1]"}
    everywhere = addresses.names("0.0.0.0", "0.0.0.0")
    assert {"127.0.0.1", "localhost", socket.gethostname().lower()} <= everywhere
    assert addresses.shown("0.0.0.0", "0.0.0.0") in everywhere
    assert "evil.example" not in everywhere
    assert addresses.names("192.168.1.2", "192.168.1.2") == {"192.168.1.2"}
    assert addresses.shown("::1", "::1") == "[::1]"


def test_a_host_that_is_none() -> None:
    with pytest.raises(UsageError, match="no such address"):
        addresses.resolve("no such host.invalid")
