"""An OpenAI-compatible server on loopback that computes real answers, and breaks as real ones do.

What it says comes from a `Speaker`: a function from token ids to the next token's log-probabilities. Which request
breaks, and how, depends on what is asked and how often it was asked before, not on the order of arrival.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import json
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from scipy.special import log_softmax

from distillctl.teachers.openai.vocabulary import TokenBytes

MODEL = "stub-model"
HELLO = "1 2 3 4"
"""What a client says first."""
WORDS = [
    "the",
    "a",
    "river",
    "king",
    "book",
    "city",
    "sea",
    "old",
    "young",
    "long",
    "far",
    "of",
    "in",
    "runs",
    "reads",
    "writes",
]
FAULTS = (
    "429", "429 retry-after", "429 retry-after date", "500", "503", "502 html", "timeout", "cut", "reset", "bad json",
    "half json", "short length", "slow drip", "no choices", "no logprobs", "not ended", "other model", "cut text",
)  # fmt: skip


class Speaker:
    """tokens: bytes of each; the last one is the end token, which has none that are shown."""

    tokens: list[bytes]

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def next(self, ids: Sequence[int]) -> np.ndarray:
        """Log-probabilities [V] of the token after ``ids``."""
        raise NotImplementedError

    @property
    def end(self) -> int:
        return len(self.tokens) - 1


class Hashed(Speaker):
    """A deterministic function of the last tokens, over words, their beginnings and single characters."""

    def __init__(self, words: Sequence[str] = WORDS, scale: float = 2.0, end: float | None = None) -> None:
        """end: the end token's score (default: it is rare)."""
        pieces = [*dict.fromkeys([" " + word for word in words] + list(words))]
        letters = [chr(c) for c in range(32, 127)] + ["\n"]
        self.tokens = [piece.encode() for piece in dict.fromkeys([*letters, *pieces])] + [b""]
        self.scale, self.end_score = scale, end
        self._ids = {token: i for i, token in enumerate(self.tokens) if token}

    def encode(self, text: str) -> list[int]:
        left, ids = text.encode("ascii", "replace"), []
        while left:
            length = next(n for n in range(min(12, len(left)), 0, -1) if left[:n] in self._ids)
            ids.append(self._ids[left[:length]])
            left = left[length:]
        return ids

    def next(self, ids: Sequence[int]) -> np.ndarray:
        seed = hashlib.sha256(struct.pack(f"<{len(ids)}i", *ids)).digest()
        scores = np.random.default_rng(int.from_bytes(seed[:8], "little")).normal(0, self.scale, len(self.tokens))
        scores[:96] -= 6  # single characters are rare, and so is the end
        scores[-1] = scores[-1] - 4 if self.end_score is None else self.end_score
        return np.asarray(log_softmax(scores))


class Model(Speaker):
    """A causal language model with its tokenizer, one row at a time in float32."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.tokens = TokenBytes(tokenizer).tokens
        self._lock = threading.Lock()

    def encode(self, text: str) -> list[int]:
        """With what the tokenizer puts before a text; the answer goes on where it ends."""
        bare = self.tokenizer("a", add_special_tokens=False).input_ids
        whole = self.tokenizer("a").input_ids
        before = next(n for n in range(len(whole)) if whole[n : n + len(bare)] == bare)
        return [*whole[:before], *self.tokenizer(text, add_special_tokens=False).input_ids]

    def next(self, ids: Sequence[int]) -> np.ndarray:
        import torch

        with self._lock, torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([list(ids)])).logits[0, -1]
            return np.asarray(logits.log_softmax(-1).numpy())

    @property
    def end(self) -> int:
        return int(self.tokenizer.eos_token_id)


@dataclass
class Rules:
    """What the server is like."""

    key: str | None = None
    most_logprobs: int | None = 40
    """None: it gives none and does not say so; 0: it refuses."""
    samples: bool = True
    usage: bool = True
    gives_bytes: bool = True
    shows_end: bool = False
    fault_rate: float = 0.0
    faults: tuple[str, ...] = FAULTS
    hang: float = 30.0
    """Seconds that a request which times out is held."""
    tempers: bool = False
    """Its log-probabilities are those after the temperature."""
    echo: bool = False
    """Whether it gives a prompt's own log-probabilities."""
    echoes: bool = False
    """Repeat the key in every answer and refusal, as no server should."""
    counts_nothing: bool = False
    """Its usage is 0 in and 0 out."""
    shift: float = 0.0
    """Nats added to every log-probability: above 0 they are none."""


@dataclass
class Stub:
    """The running server and what it saw."""

    speaker: Speaker
    rules: Rules
    port: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Of every request, in order of arrival."""
    answered: Counter[str] = field(default_factory=Counter)
    """Body → how often it was answered whole."""
    broken: Counter[str] = field(default_factory=Counter)
    headers: list[dict[str, str]] = field(default_factory=list)
    refuses: str | None = None
    """A request with this text in it fails (status 500)."""
    closing: threading.Event = field(default_factory=threading.Event)
    _tries: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def arrived(self, body: dict[str, Any], headers: dict[str, str]) -> str | None:
        """Note a request; the fault it meets, if any."""
        key = json.dumps(body, sort_keys=True)
        with self._lock:
            self.bodies.append(body)
            self.headers.append(headers)
            self._tries[key] += 1
            drawn = random.Random(f"{key}{self._tries[key]}")
            if drawn.random() >= self.rules.fault_rate:
                return None
            fault = drawn.choice(self.rules.faults)
            if fault == "other model" and HELLO in key:
                fault = "500"  # who answers first is whom the client takes for the model
            self.broken[fault] += 1
            return fault

    def note_answer(self, body: dict[str, Any]) -> None:
        with self._lock:
            self.answered[json.dumps(body, sort_keys=True)] += 1

    @cached_property
    def fingerprint(self) -> str:
        return "fp_" + hashlib.sha256(b"".join(self.speaker.tokens)).hexdigest()[:8]

    # ── the protocol ─────────────────────────────────────────────────────────────────────────────

    def answer(self, body: dict[str, Any], chat: bool) -> dict[str, Any]:
        """The whole answer as JSON."""
        prompt = body["prompt"] if not chat else _templated(body["messages"])
        ids = self.speaker.encode(prompt)
        count = body.get("n", 1) if self.rules.samples else 1
        limit = body.get("max_tokens", body.get("max_completion_tokens", 16))
        said = [self._say(ids, body, limit, index) for index in range(count)]
        top = (body.get("top_logprobs", 0) if body.get("logprobs") else 0) if chat else body.get("logprobs") or 0
        if self.rules.most_logprobs is None:
            top = 0
        choices = []
        for index, one in enumerate(said):
            choice: dict[str, Any] = {"index": index, "finish_reason": one.reason}
            choice |= {"message": {"role": "assistant", "content": one.text}} if chat else {"text": one.text}
            choice["logprobs"] = self._logprobs(one, top, chat) if top else None
            if body.get("echo"):
                choice |= {"text": prompt + one.text, "logprobs": self._echo(ids, one)}
            choices.append(choice)
        found: dict[str, Any] = {
            "id": "x", "object": "chat.completion" if chat else "text_completion", "created": 0, "model": body["model"],
            "system_fingerprint": self.fingerprint, "choices": choices,
        }  # fmt: skip
        if self.rules.usage:
            written = sum(len(one.ids) for one in said)
            found["usage"] = {
                "prompt_tokens": len(ids),
                "completion_tokens": written,
                "total_tokens": len(ids) + written,
            }
            if self.rules.counts_nothing:
                found["usage"] = dict.fromkeys(found["usage"], 0)
        return found

    def _say(self, prompt: list[int], body: dict[str, Any], limit: int, index: int) -> _Said:
        temperature, stop = body.get("temperature", 1.0), body.get("stop") or []
        drawn = np.random.default_rng([body.get("seed") or 0, index])
        ids: list[int] = []
        log_probs: list[np.ndarray] = []
        while len(ids) < limit:
            found = self.speaker.next([*prompt, *ids])
            scaled = log_softmax(found / temperature) if temperature else found
            token = int(scaled.argmax()) if not temperature else int(drawn.choice(len(found), p=np.exp(scaled)))
            ids.append(token)
            log_probs.append(scaled if self.rules.tempers else found)
            text = b"".join(self.speaker.tokens[i] for i in ids if i != self.speaker.end).decode("utf-8", "replace")
            if token == self.speaker.end or any(s in text for s in stop):
                cut = min([at for s in stop if (at := text.find(s)) >= 0], default=len(text))
                shown = ids if self.rules.shows_end else _within(ids, self.speaker, text[:cut])
                return _Said(text[:cut], "stop", ids, shown, log_probs)
        return _Said(text, "length", ids, ids, log_probs)

    def _logprobs(self, said: _Said, count: int, chat: bool) -> dict[str, Any]:
        rows = []
        for token, log_probs in zip(said.shown, said.log_probs, strict=False):
            order = np.argsort(-log_probs, kind="stable")[:count]
            rows.append((token, log_probs + self.rules.shift, [int(i) for i in order]))
        if chat:
            return {"content": [
                self._token(token, log_probs) | {"top_logprobs": [self._token(i, log_probs) for i in order]}
                for token, log_probs, order in rows
            ]}  # fmt: skip
        spelled = self.rules.gives_bytes
        return {
            "tokens": [self._text(token, spelled) for token, _, _ in rows],
            "token_logprobs": [float(log_probs[token]) for token, log_probs, _ in rows],
            "top_logprobs": [
                {self._text(i, spelled): float(log_probs[i]) for i in order} for _, log_probs, order in rows
            ],
            "text_offset": [0] * len(rows),
        }

    def _echo(self, prompt: list[int], said: _Said) -> dict[str, Any]:
        """The prompt's tokens and the answer's, each with its own log-probability; the first token has none."""
        ids = [*prompt, *said.shown]
        values = [float(self.speaker.next(ids[:n])[ids[n]] + self.rules.shift) for n in range(1, len(ids))]
        return {"tokens": [self._text(token, True) for token in ids], "token_logprobs": [None, *values]}

    def _token(self, token: int, log_probs: np.ndarray) -> dict[str, Any]:
        given = list(self.speaker.tokens[token]) if self.rules.gives_bytes else None
        return {"token": self._text(token), "logprob": float(log_probs[token]), "bytes": given}

    def _text(self, token: int, spelled: bool = False) -> str:
        """spelled: parts of characters as OpenAI writes them in completions, where there is no place for bytes."""
        whole = self.speaker.tokens[token]
        try:
            return whole.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in whole) if spelled else "\ufffd"


@dataclass(frozen=True)
class _Said:
    text: str
    reason: str
    ids: list[int]
    shown: list[int]
    log_probs: list[np.ndarray]


def _within(ids: list[int], speaker: Speaker, text: str) -> list[int]:
    """The tokens that begin in the text that is shown, as OpenAI leaves out the others."""
    shown: list[int] = []
    for token in ids:
        if token == speaker.end or b"".join(speaker.tokens[i] for i in shown).decode("utf-8", "replace") == text:
            break
        shown.append(token)
    return shown


def _templated(messages: list[dict[str, str]]) -> str:
    """The server's own chat template."""
    return "\n".join(message["content"] for message in messages)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    stub: Stub

    def do_POST(self) -> None:
        stub, rules = self.stub, self.stub.rules
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat = self.path.endswith("/chat/completions")
        fault = stub.arrived(body, {name.lower(): value for name, value in self.headers.items()})
        if rules.key is not None and self.headers.get("Authorization") != f"Bearer {rules.key}":
            self._refuse(401, f"Incorrect API key provided: {self.headers.get('Authorization')}")
        elif body["model"] != MODEL:
            self._refuse(404, f"The model `{body['model']}` does not exist", code="model_not_found")
        elif stub.refuses is not None and stub.refuses in json.dumps(body):
            self._refuse(500, "broken")
        elif body.get("echo") and not rules.echo:
            self._refuse(400, "echo is not supported")
        elif self._wants_too_many(body, chat):
            self._refuse(400, f"Invalid value for 'top_logprobs': must be at most {rules.most_logprobs}")
        elif fault is None:
            answer = stub.answer(body, chat)
            if rules.echoes:
                answer["system_fingerprint"] = self.headers.get("Authorization")
            stub.note_answer(body)
            self._send(json.dumps(answer).encode())
        else:
            self._break(fault, body, chat)

    def _wants_too_many(self, body: dict[str, Any], chat: bool) -> bool:
        most = self.stub.rules.most_logprobs
        wanted = body.get("top_logprobs", 0) if chat else body.get("logprobs") or 0
        return most is not None and wanted > most

    def _break(self, fault: str, body: dict[str, Any], chat: bool) -> None:
        match fault.split()[0], fault:
            case "429", "429":
                self._refuse(429, "slow down")
            case "429", "429 retry-after":
                self._refuse(429, "slow down", headers={"Retry-After": "0.02"})
            case "429", _:
                self._refuse(429, "slow down", headers={"Retry-After": email.utils.formatdate(usegmt=True)})
            case "503", "503 later":
                self._refuse(503, "not now", headers={"Retry-After": "500"})
            case ("500" | "503") as status, _:
                self._refuse(int(status), f"broken {self.headers.get('Authorization')}")
            case "502", _:
                self._send(b"<html>bad gateway</html>", status=502, kind="text/html")
            case "timeout", _:
                self.stub.closing.wait(self.stub.rules.hang)
                self.close_connection = True
            case "reset", _:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
            case _:
                self._break_body(fault, self.stub.answer(body, chat), chat)

    def _break_body(self, fault: str, answer: dict[str, Any], chat: bool) -> None:
        """What comes with status 200 and is no answer all the same."""
        whole = json.dumps(answer).encode()
        match fault:
            case "cut":
                self._send(whole[: len(whole) // 2], length=len(whole))
                self.close_connection = True
            case "bad json":
                self._send(whole.replace(b'"choices"', b'"choices" oops', 1))
            case "half json":
                self._send(whole[: len(whole) // 2])
            case "short length":
                self._send(whole, length=len(whole) - 9)
                self.close_connection = True
            case "slow drip":
                self._head(200, len(whole), "application/json")
                with contextlib.suppress(OSError):
                    for byte in whole:
                        self.wfile.write(bytes([byte]))
                        if self.stub.closing.wait(0.2):
                            break
                self.close_connection = True
            case _:
                choice = answer["choices"][0]
                if fault == "no choices":
                    answer["choices"] = []
                elif fault == "no logprobs":
                    choice["logprobs"] = None
                    if not any(choice.get(key) for key in ("text", "message")):
                        answer["choices"] = []
                elif fault == "not ended":
                    choice["finish_reason"] = None
                elif fault == "other model":
                    answer["model"] = "another"
                elif fault == "cut text":
                    choice["finish_reason"] = None
                    place, name = (choice["message"], "content") if chat else (choice, "text")
                    place[name] = place[name][: len(place[name]) // 2]
                self._send(json.dumps(answer).encode())

    def _refuse(
        self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        self._send(json.dumps({"error": {"message": message, "code": code}}).encode(), status=status, headers=headers)

    def _send(
        self,
        body: bytes,
        *,
        status: int = 200,
        length: int | None = None,
        kind: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        self._head(status, len(body) if length is None else length, kind, headers)
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def _head(self, status: int, length: int, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(length), **(headers or {})}.items():
            self.send_header(name, value)
        with contextlib.suppress(OSError):
            self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *args: Any) -> None:
        pass  # a client that went away


@contextlib.contextmanager
def serve(speaker: Speaker | None = None, *, port: int = 0, **rules: Any) -> Iterator[Stub]:
    """The server while the block runs."""
    stub = Stub(speaker or Hashed(), Rules(**rules))
    server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"stub": stub}))
    stub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.closing.set()
        server.shutdown()
        server.server_close()


def later(seconds: float, start: Callable[[], Any]) -> None:
    """Do something in a while, beside."""
    timer = threading.Timer(seconds, start)
    timer.daemon = True
    timer.start()
