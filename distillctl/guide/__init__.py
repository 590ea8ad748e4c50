"""The guide: a Markdown file per topic, which `distillctl guide` shows in a terminal and code hosts show as a page.

A file begins with its title, an empty line, and one sentence that says what the reader can do after reading it.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from importlib import resources

from distillctl.errors import UsageError

NAMES = (
    "getting-started",
    "concepts",
    "recipes",
    "teachers",
    "students",
    "quantization",
    "phone",
    "ci",
    "run-directory",
    "scale",
    "safety",
    "troubleshooting",
    "commands",
)
"""The topics, in the order in which a newcomer reads them."""
_TO_TOPIC = re.compile(r"\[([^\]]+)\]\(([a-z-]+)\.md\)")
_TO_FILE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)]+)\)")


@dataclass(frozen=True)
class Topic:
    """One Markdown file of the guide."""

    name: str
    markdown: str

    @property
    def summary(self) -> str:
        """Return the sentence below the title."""
        return self.markdown.split("\n\n", 2)[1].replace("\n", " ")

    def for_terminal(self) -> str:
        """Return the Markdown with its links in words, because a terminal cannot follow relative links."""
        in_words = _TO_TOPIC.sub(r"\1 (`distillctl guide \2`)", self.markdown)
        return _TO_FILE.sub(lambda link: link[1] if link[1] in link[2] else f"{link[1]} (`{link[2]}`)", in_words)


def topic(name: str) -> Topic:
    """Read a topic. If there is none of that name, raise UsageError with the nearest one."""
    if name not in NAMES:
        nearest = difflib.get_close_matches(name[:50].lower(), NAMES, n=1, cutoff=0.5)
        raise UsageError(
            f"the guide has no topic {name!r}" + (f", did you mean {nearest[0]}?" if nearest else ""),
            next=f"distillctl guide {nearest[0]}" if nearest else "distillctl guide",
        )
    return Topic(name, (resources.files(__name__) / f"{name}.md").read_text(encoding="utf-8"))


def topics() -> list[Topic]:
    """Read every topic."""
    return [topic(name) for name in NAMES]
