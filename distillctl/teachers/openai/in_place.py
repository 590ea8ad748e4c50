"""Find the labels' tokens as a served teacher would write them after a view, and the text to send for them.

If the tokenizer is known, view and words are tokenized together, as for a local teacher: white space at the end of a
view that belongs to a label's first token is not sent. Otherwise one final space is kept back, because it belongs to
the word in the vocabularies of all common models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from distillctl.data.answer_place import AnswerPlace
from distillctl.errors import RecipeError
from distillctl.teachers.answer_tokens import AnswerTokenizer
from distillctl.teachers.openai.labels import Label, Path, check_differ
from distillctl.teachers.openai.protocol import Api
from distillctl.teachers.openai.vocabulary import TokenBytes

_AFTER = "\n"
"""Text that may precede an answer in a chat, whose template only the server knows."""


@dataclass(frozen=True)
class Sent:
    """The text to send for a view, the labels that follow it, and its token ids if they are known."""

    text: str
    labels: Sequence[Label]
    ids: Sequence[int] | None = None


@dataclass
class LabelsInPlace:
    """Labels in place. words: label name → its words."""

    words: Mapping[str, str]
    vocabulary: TokenBytes | None
    api: Api
    _chats: dict[str, list[Label]] = field(default_factory=dict)
    _checked: dict[tuple[tuple[int, ...], ...], list[Label]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tokenize = AnswerTokenizer(self._encode)

    def after(self, view: str, place: AnswerPlace) -> Sent:
        """Return the text and labels for a view. Raise RecipeError if labels cannot be written or told apart."""
        between = place.between(view)
        if self.api == "chat":
            if between not in self._chats:
                self._chats[between] = self._chat(between)
            return Sent(view, self._chats[between])
        if self.vocabulary is None:
            if view.endswith(" ") and not between:
                view, between = view[:-1], " "
            return Sent(view, [Label(name, (between + words).encode()) for name, words in self.words.items()])
        in_place = self._tokenize(view, [between + words for words in self.words.values()])
        labels = self._known(in_place.answers)
        text = self._text(view, len(in_place.view)) if in_place.merged else view
        return Sent(text, labels, in_place.view)

    def can_ask(self, sent: Sent, path: Path) -> bool:
        """Tell whether the server would read a label's first tokens, after the view, as these tokens.

        A text that ends within a word or a character may have other tokens.
        """
        try:
            whole = sent.text + b"".join(path).decode()
        except UnicodeDecodeError:
            return False
        if not path or sent.ids is None or self.vocabulary is None:
            return True
        ids, view = self._encode(whole), list(sent.ids)
        return ids[: len(view)] == view and tuple(self.vocabulary.tokens[i] for i in ids[len(view) :]) == path

    # ── with the tokenizer ───────────────────────────────────────────────────────────────────────

    def _encode(self, text: str) -> list[int]:
        assert self.vocabulary is not None
        return list(self.vocabulary.tokenizer(text, add_special_tokens=False).input_ids)

    def _text(self, view: str, tokens: int) -> str:
        """Return the text of the view's first tokens."""
        assert self.vocabulary is not None
        offsets = self.vocabulary.tokenizer(view, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        return view[: offsets[tokens - 1][1]] if tokens else ""

    def _known(self, answers: tuple[tuple[int, ...], ...]) -> list[Label]:
        if answers not in self._checked:
            labels = [self._label(name, ids) for name, ids in zip(self.words, answers, strict=True)]
            check_differ(labels, first_only=False)
            self._checked[answers] = labels
        return self._checked[answers]

    def _label(self, name: str, ids: Sequence[int]) -> Label:
        """Return the label with these tokens. Raise RecipeError if they do not write its words."""
        assert self.vocabulary is not None
        tokenizer, words = self.vocabulary.tokenizer, self.words[name]
        back = tokenizer.decode(ids)
        if tokenizer.unk_token_id in {*ids} - {None} or not "".join(back.split()).endswith("".join(words.split())):
            problem = f"teacher.tokenizer cannot write {words!r} (it reads back as {back!r})"
            raise RecipeError(problem, where="task.labels")
        tokens = tuple(self.vocabulary.tokens[i] for i in ids)
        return Label(name, b"".join(tokens), tokens)

    def _chat(self, between: str) -> list[Label]:
        """Return a chat's labels, of which only the first token is requested.

        Whether a space belongs to it depends on what the server's chat template puts before an answer, so both ways
        count.
        """
        labels = []
        for name, label_words in self.words.items():
            words = between + label_words
            starts: Path = ()
            if self.vocabulary is not None:
                ways = [self._tokenize(view, [words]).answers[0] for view in ("", _AFTER)]
                starts = tuple(dict.fromkeys(self._label(name, ids).tokens[0] for ids in ways))  # type: ignore[index]
            labels.append(Label(name, words.encode(), starts=starts))
        check_differ(labels, first_only=True)
        return labels
