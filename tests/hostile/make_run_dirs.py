"""Writes corpus/journals, corpus/strangers and corpus/caches: what lies where distillctl keeps its own.

`python -m tests.hostile.make_run_dirs`.
"""

from __future__ import annotations

import json
from typing import Any

from distillctl.run_dir import checksums
from tests.hostile.make_models import write

HUGE = 10**400
TOKEN = "0123456789abcdef"


def signed(document: Any) -> str:
    """With the checksum that whoever writes the file can put there, too."""
    return checksums.put(document if isinstance(document, str) else json.dumps(document))


def line(**changes: Any) -> str:
    return signed({"key": "k", "used": [1, 1]} | changes)


def answered(tokens: Any = (), **changes: Any) -> str:
    choice = {"text": "x", "cut": False, "tokens": tokens}
    answer = {"choices": [choice], "model": "m", "system_fingerprint": None, "usage": [1, 1]} | changes
    return line(ms=1.0, answer=answer)


def top(*log_probs: Any) -> list[Any]:
    """One token, and the likeliest ones there."""
    return [["x", [[f"t{number}", value] for number, value in enumerate(log_probs)]]]


def journals() -> dict[str, Any]:
    """answers.jsonl: what a server has answered, one line each."""
    whole = answered(top(-0.1))
    return {
        "ok-whole": whole,
        "ok-nothing": "",
        "ok-several": whole + line() + line(key="l", ms=2, answer=json.loads(whole)["answer"]),
        "ok-without-a-checksum": json.dumps({"key": "k", "used": [1, 1]}) + "\n",
        "torn": whole[:-30],
        "torn-in-the-middle": whole[:40] + "\n" + whole,
        "torn-checksum": whole.replace('"checksum": "', '"checksum": "0'),
        "one-byte-changed": whole.replace('"x"', '"y"', 1),
        "deep-list": "[" * 9000 + "\n",
        "deep-list-that-ends": "[" * 4000 + "]" * 4000 + "\n",
        "deep-answer": signed('{"key": "k", "used": [1, 1], "ms": 1, "answer": ' + '{"a":' * 3000 + "1" + "}" * 3001),
        "deep-tokens": answered(json.loads("[" * 150 + "]" * 150)),
        "huge-log-probability": answered(top(-HUGE)),
        "log-probability-above-zero": answered(top(3.5)),
        "log-probabilities-above-one-together": answered(top(0.0, -0.1, -0.2)),
        "log-probability-not-a-number": answered(top(float("nan"))),
        "log-probability-infinite": answered(top(float("inf"))),
        "log-probability-a-list": answered(top([1])),
        "log-probability-1e999": answered(top("LOG")).replace('"LOG"', "1e999"),
        "count-huge": line(used=[HUGE, 1]),
        "count-of-5000-digits": line(used="USED").replace('"USED"', f"[{'9' * 5000}, 1]"),
        "count-infinite": line(used=[float("inf"), 1]),
        "count-negative": line(used=[-1, 1]),
        "count-a-half": line(used=[1, 0.5]),
        "counts-three": line(used=[1, 1, 1]),
        "counts-a-text": line(used="11"),
        "counts-missing": signed({"key": "k"}),
        "usage-huge": answered(usage=[HUGE, HUGE]),
        "milliseconds-huge": line(ms=HUGE, answer={}),
        "milliseconds-negative": answered().replace('"ms": 1.0', '"ms": -1.0'),
        "milliseconds-without-an-answer": line(ms=1.0),
        "key-missing": signed({"used": [1, 1]}),
        "key-a-list": line(key=["k"]),
        "key-of-9000-characters": line(key="k" * 9000),
        "answer-a-list": line(ms=1, answer=[]),
        "choices-a-number": answered(choices=5),
        "choice-without-text": answered(choices=[{"cut": False, "tokens": []}]),
        "token-of-no-byte": answered([["\u4e2d", []]]),
        "token-half-a-character": answered([["\ud800", []]]),
        "token-a-number": answered([[7, []]]),
        "another-key": answered(secret="x"),
        "a-list": "[]\n",
        "a-number": "1e999\n",
        "zeros": bytes(9000) + b"\n",
        "no-utf8": b'{"key": "\xff", "used": [1, 1]}\n',
        "empty-lines": "\n\n\n",
        "terminal-escapes": "\x1b]0;pwned\x07\x1b[2J\n",
        "one-line-without-end": "x" * 19_000,
    }


def strangers() -> dict[str, Any]:
    """A file in a folder of somebody else's, by the name that it has in a run directory (`cases.NAMES`)."""
    app = {"name": "App", "start_url": "/", "display": "standalone"}
    ours = {"stage": "train", "recipe": {}, "inputs": {}, "outputs": {}, "facts": {}, "versions": {}, "seed": 0}
    whole = signed({"about": "x", "token": TOKEN})
    recipe = "name: mine\nseed: 0\ntask: {}\ndata: {}\n"
    return {
        "marker-empty": "",
        "marker-a-text": "mine",
        "marker-null": "null",
        "marker-a-list": "[]",
        "marker-an-object": "{}",
        "marker-without-a-checksum": json.dumps({"token": TOKEN}),
        "marker-of-another-checksum": whole.replace("x", "y"),
        "marker-without-a-token": signed({"about": "x"}),
        "marker-token-empty": signed({"token": ""}),
        "marker-token-a-number": signed({"token": 1}),
        "marker-token-a-pattern": signed({"token": ".*"}),
        "marker-token-with-a-newline": signed({"token": f"{TOKEN}\n"}),
        "marker-token-that-goes-up": signed({"token": "../../../../../.."}),
        "marker-token-of-other-digits": signed({"token": "\u0661" * 16}),
        "marker-cut": whole[:-10],
        "marker-twice": whole + whole,
        "marker-deep": "[" * 4000,
        "marker-large": signed({"token": TOKEN, "about": "x" * 9000}),
        "marker-no-utf8": b"\xff\xfe",
        "lock-a-text": "mine\n",
        "lock-json": json.dumps(app),
        "lock-zeros": bytes(64),
        "lock-large": "x" * 9000,
        "recipe-empty": "",
        "recipe-of-another-tool": recipe,
        "recipe-sections-inside": "".join(f"  {one}: x\n" for one in ("name", "seed", "task", "data", "contexts")),
        "recipe-deep": "[" * 9000,
        "recipe-no-utf8": b"\xff\xfename: x\n",
        "manifest-of-an-app": json.dumps(app),
        "manifest-of-an-extension": json.dumps({"manifest_version": 3, "name": "Mine", "version": "1"}),
        "manifest-empty": "",
        "manifest-null": "null",
        "manifest-a-list": "[]",
        "manifest-deep": "[" * 9000,
        "manifest-cut": signed(ours)[:-20],
        "manifest-without-a-stage": signed({key: value for key, value in ours.items() if key != "stage"}),
        "manifest-of-another-stage": signed(ours | {"stage": "report", "seconds": 1.0, "created": 1.0}),
        "manifest-of-another-checksum": signed(ours | {"seconds": 1.0, "created": 1.0}).replace(
            '"seed": 0', '"seed": 1'
        ),
        "manifest-that-goes-up": signed(
            ours | {"seconds": 1.0, "created": 1.0, "outputs": {"../../x": {"sha256": "0" * 64, "bytes": 1}}}
        ),
        "manifest-int-of-5000-digits": '{"stage": "train", "seed": ' + "9" * 5000 + "}",
    }


def caches() -> dict[str, Any]:
    """The record of a cached folder's files, which holds one: config.json, of two bytes."""
    sha256 = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    return {
        "ok-whole": signed({"files": {"config.json": sha256}}),
        "empty": "",
        "null": "null",
        "a-list": "[]",
        "an-object": "{}",
        "without-a-checksum": json.dumps({"files": {"config.json": sha256}}),
        "of-another-checksum": signed({"files": {"config.json": sha256}}).replace("config", "confag"),
        "of-other-bytes": signed({"files": {"config.json": "0" * 64}}),
        "of-a-hash-in-capitals": signed({"files": {"config.json": sha256.upper()}}),
        "of-a-number": signed({"files": {"config.json": 1}}),
        "of-no-files": signed({"files": {}}),
        "of-more-files": signed({"files": {"config.json": sha256, "model.safetensors": sha256}}),
        "of-a-file-outside": signed({"files": {"config.json": sha256, "../../../outside/secret.txt": sha256}}),
        "of-an-absolute-path": signed({"files": {"config.json": sha256, "/etc/passwd": sha256}}),
        "files-a-list": signed({"files": ["config.json"]}),
        "files-a-number": signed({"files": 1}),
        "deep": "[" * 9000,
        "cut": signed({"files": {"config.json": sha256}})[:-20],
        "twice": signed({"files": {"config.json": sha256}}) * 2,
        "no-utf8": b"\xff\xfe{}",
        "int-of-5000-digits": '{"files": ' + "9" * 5000 + "}",
    }


def main() -> None:
    write("journals", journals(), "jsonl")
    write("strangers", strangers(), "any")
    write("caches", caches(), "json")


if __name__ == "__main__":
    main()
