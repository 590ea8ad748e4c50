"""Find where an answer begins: what the teacher reads before it, and the text between that and the answer's words.

A label or a given response is scored as the teacher itself would write it. What it would write first (a space, a
newline, nothing) follows from the context's own examples, or from the model's chat template. A recipe's
``task.answer_prefix`` takes precedence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_INPUT = "\ue000"
"""Stands for the input while a context is analysed: a private character, which no template contains."""
_WORD = "answer"
_SHORTEST_CUE = 2
"""Shortest cue in characters. Shorter strings, such as a colon, occur in any text."""


@dataclass(frozen=True)
class AnswerPlace:
    """The place of an answer after the views of one context.

    prefix: the recipe's text before the words; None: derived. gap: the white space (perhaps none) between cue and
    answer in the context's own examples or in the chat template; None: there are no examples.
    """

    prefix: str | None = None
    gap: str | None = None
    chat: bool = False
    strip_newline: bool = True

    def before(self, view: str) -> str:
        """Return the text that the teacher reads: the view without one final newline, which editors and YAML's ``|``
        leave.

        The newline stays if the context's examples have one there, if the recipe says ``final_newline: keep``, and in a
        chat template's text.
        """
        if self.chat or not self.strip_newline or (self.gap or "").startswith(("\n", "\r")):
            return view
        return view.removesuffix("\n").removesuffix("\r") if view.endswith("\n") else view

    def between(self, view: str) -> str:
        """Return the text between `before` of a view and the answer's words."""
        if self.prefix is not None:
            return self.prefix
        text = self.before(view)
        if self.gap is not None:
            shared = next(n for n in range(len(self.gap), -1, -1) if text.endswith(self.gap[:n]))
            return self.gap[shared:]
        return "" if self.chat or text[-1:].isspace() else " "


def of_template(render: Callable[[str], str], prefix: str | None, *, strip_newline: bool) -> AnswerPlace:
    """Find the place in a template context.

    render: an input → the view's text. Examples, in the template or in its variables, repeat the text after the input
    (the cue); the teacher will write the white space that most often follows it.
    """
    try:
        _, at, cue = render(_INPUT).rpartition(_INPUT)
        earlier = render(_INPUT)[: -len(cue)] if cue else ""
    except Exception:  # a template that fails here also fails on real rows, with a better error
        at = cue = earlier = ""
    cue = cue.rstrip()
    gaps = (
        Counter(_white_space(rest) for rest in earlier.split(cue)[1:] if rest.strip())
        if at and len(cue) >= _SHORTEST_CUE
        else Counter()
    )
    gap = gaps.most_common(1)[0][0] if gaps else None
    return AnswerPlace(prefix, gap, strip_newline=strip_newline)


def of_chat(render: Callable[[Sequence[dict[str, str]]], str], prompt: str, prefix: str | None) -> AnswerPlace:
    """Find the place in a chat context.

    render: further messages → the whole conversation from the chat template. prompt: the view, ready for the answer.
    The template's text before an assistant's words counts only if it is white space.
    """
    gap = ""
    try:
        whole = render([{"role": "assistant", "content": _WORD}])
    except Exception:  # some templates refuse unusual messages; an answer then follows the view directly
        whole = ""
    if whole.startswith(prompt):
        lead, answer, _ = whole[len(prompt) :].partition(_WORD)
        gap = lead if answer and not lead.strip() else ""
    return AnswerPlace(prefix, gap or None, chat=True)


def _white_space(text: str) -> str:
    return text[: len(text) - len(text.lstrip())]
