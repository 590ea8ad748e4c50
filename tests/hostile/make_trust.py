"""Writes corpus/trust, recipes that would send, read or run what is not theirs: `python -m tests.hostile.make_trust`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "corpus" / "trust"
EVIL = "https://llm.evil.example/v1"
SERVED = {"kind": "openai", "model": "m", "base_url": EVIL, "api_key_env": "AWS_SECRET_ACCESS_KEY"}
BASE: dict[str, Any] = {
    "name": "tiny",
    "task": {"labels": {"number": "many", "person": "who", "place": "where"}, "answer_prefix": ""},
    "data": {"source": "rows.jsonl"},
    "contexts": {"full": {"template": "say {{ input }}"}},
    "teacher": {"model": "teacher"},
    "student": {"kind": "pretrained", "model": "student"},
}
WANTED = ("AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "GITHUB_TOKEN", "HF_TOKEN", "AZURE_OPENAI_API_KEY", "_key")
ENVIRONMENT = dict.fromkeys(WANTED, "hostile-secret-0123456789")
"""What a recipe might want."""


def addresses() -> dict[str, str]:
    """Servers that a key may not go to, and addresses that are none."""
    return {
        "of-nobody": EVIL,
        "upper-case": "HTTPS://LLM.EVIL.EXAMPLE/v1",
        "with-a-port": "https://llm.evil.example:8443/v1",
        "an-ip": "https://192.0.2.1/v1",
        "an-ipv6": "https://[2001:db8::1]/v1",
        "link-local": "https://169.254.169.254/latest",
        "ends-like-openai": "https://evil-openai.com/v1",
        "begins-like-openai": "https://api.openai.com.evil.example/v1",
        "below-openai": "https://evil.api.openai.com/v1",
        "openai-at-another-port": "https://api.openai.com:4430/v1",
        "punycode": "https://xn--pi-7kc.openai.com/v1",
        "begins-like-loopback": "https://127.0.0.1.evil.example/v1",
        "begins-like-localhost": "https://localhost.evil.example/v1",
        "loopback-in-short": "https://127.1/v1",
        "loopback-as-a-number": "https://2130706433/v1",
        "loopback-in-hex": "https://0x7f000001/v1",
        "all-addresses": "https://0.0.0.0/v1",
        "a-name-that-may-lead-here": "https://localtest.me/v1",
        "azure-of-somebody": "https://evil.openai.azure.com/v1",
        "user": "https://api.openai.com@llm.evil.example/v1",
        "user-and-password": "https://api.openai.com:443@llm.evil.example/v1",
        "backslash": "https://llm.evil.example\\@api.openai.com/v1",
        "cyrillic": "https://\u0430pi.openai.com/v1",
        "full-width": "https://\uff41pi.openai.com/v1",
        "full-width-dots": "https://api\u3002openai\u3002com/v1",
        "sharp-s": "https://stra\u00dfe.example/v1",
        "percent": "https://%61pi.openai.com/v1",
        "tab": "https://api.open\tai.com/v1",
        "newline": "https://api.openai.com\n.evil.example/v1",
        "space": "https://api.openai.com .evil.example/v1",
        "nul-escape": "https://api.openai.com%00.evil.example/v1",
        "terminal-escape": "https://\x1b[31mevil.example/v1",
        "bidi": "https://moc.\u202eelpmaxe.live/v1",
        "markup": "https://[red]evil[/red].example/v1",
        "fragment": "https://llm.evil.example/v1#api.openai.com",
        "query": "https://llm.evil.example/v1?api.openai.com",
        "port-beyond": "https://api.openai.com:65536/v1",
        "no-host": "https:///v1",
        "no-scheme": "api.openai.com/v1",
        "ftp": "ftp://api.openai.com/v1",
        "file": "file:///etc/passwd",
        "http-abroad": "http://llm.evil.example/v1",
        "http-openai": "http://api.openai.com/v1",
        "very-long": "https://" + "a." * 3000 + "example/v1",
    }


def keys() -> dict[str, Any]:
    """Variables that are not this server's, and names that are none."""
    return {
        "github": "GITHUB_TOKEN",
        "hub": "HF_TOKEN",
        "openai": "OPENAI_API_KEY",
        "azure": "AZURE_OPENAI_API_KEY",
        "underscore": "_key",
        "is-the-key": "sk-0123456789",
        "two": "OPENAI_API_KEY AWS_SECRET_ACCESS_KEY",
        "dollar": "$AWS_SECRET_ACCESS_KEY",
        "terminal-escape": "\x1b]0;title\x07",
        "a-list": ["OPENAI_API_KEY"],
    }


def _with(**sections: Any) -> dict[str, Any]:
    return {**BASE, **{key: {**BASE.get(key, {}), **section} for key, section in sections.items()}}


def recipes() -> Iterator[tuple[str, dict[str, Any]]]:
    for what, url in addresses().items():
        yield f"address-{what}", {**BASE, "teacher": {**SERVED, "base_url": url}}
    for what, variable in keys().items():
        yield f"key-{what}", {**BASE, "teacher": {**SERVED, "api_key_env": variable}}
    yield "key-of-aws-to-openai", {**BASE, "teacher": {**SERVED, "base_url": "https://api.openai.com/v1"}}
    without = {**SERVED, "api_key_env": None}
    for what, path in {
        "passwd": "/etc/passwd", "hosts": "/etc/hosts", "upwards": "../elsewhere/notes.log",
        "upwards-from-a-folder": "teacher/../../elsewhere/notes.log", "hidden-upwards": "./../elsewhere/notes.log",
        "from-home": "~/../elsewhere/notes.log", "by-a-link": "linked.log", "through-a-link": "linked/notes.log",
    }.items():  # fmt: skip
        lines = {"source": path, "format": "lines", "pattern": "(?P<input>.*)"}
        yield f"sends-{what}", {**_with(data=lines), "teacher": without}
    yield (
        "sends-a-template",
        {**BASE, "teacher": without, "contexts": {"full": {"template_file": "../elsewhere/notes.log"}}},
    )
    for what, path in {"environment": "/proc/self/environ", "memory": "/proc/self/maps", "another-process": "/proc/1/environ",
                       "a-thread": "/proc/thread-self/environ", "sys": "/sys/kernel/notes"}.items():  # fmt: skip
        yield f"reads-{what}", _with(data={"source": path, "format": "lines", "pattern": "(?P<input>.*)"})
    yield "reads-environment-as-template", {**BASE, "contexts": {"full": {"template_file": "/proc/self/environ"}}}
    for side in ("teacher", "student"):
        yield f"code-of-{side}", _with(**{side: {"trust_remote_code": True}})
    yield "code-of-both", _with(teacher={"trust_remote_code": True}, student={"trust_remote_code": True})
    for word in ("yes", "on", 1, "true"):  # what the schema takes for true has to be asked for as well
        yield f"code-by-{word}", _with(teacher={"trust_remote_code": word})
    for what, address in {"host": "evil.example:6379", "client": "ray://evil.example:10001", "ip": "192.0.2.1:6379",
                          "like-loopback": "127.0.0.1.evil.example:6379", "user": "ray://127.0.0.1@evil.example:1"}.items():  # fmt: skip
        yield f"cluster-{what}", {**BASE, "collect": {"engine": "ray", "address": address}}
    yield "ok-own-provider", {**BASE, "teacher": {"kind": "openai", "model": "m"}}
    yield "ok-loopback", {**BASE, "teacher": {**SERVED, "base_url": "http://127.0.0.1:9/v1"}}
    yield "ok-model-from-elsewhere", _with(teacher={"model": "../work/teacher"})
    yield "ok-labels-with-orders", _with(task={"labels": {"a\x1b[31m": "many", "b\u202e": "who", "<b>|`": "where"}})


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    for number, (what, recipe) in enumerate(recipes(), 1):
        (FOLDER / f"{number:03d}-{what}.yaml").write_text(json.dumps(recipe, indent=1) + "\n")  # JSON is YAML


if __name__ == "__main__":
    main()
