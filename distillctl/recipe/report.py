"""The section about the report."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from distillctl.recipe.base import Section

LANGUAGES = frozenset((
    "ace", "af", "am", "an", "ar", "ary", "arz", "as", "az", "ba", "bcl", "be", "bg", "bn", "br", "bs", "ca", "crh",
    "cs", "cy", "da", "de", "dz", "el", "en", "eo", "es", "et", "eu", "ext", "fa", "fi", "fo", "fr", "fuv", "fy",
    "ga", "gcf", "gcr", "gd", "gl", "gom", "grc", "gu", "gug", "guw", "ha", "hbo", "he", "hi", "hr", "ht", "hu",
    "hy", "id", "ig", "is", "it", "ja", "jv", "ka", "kab", "kik", "kk", "km", "kn", "ko", "ku", "ky", "la", "lb",
    "lg", "lij", "ln", "lo", "lt", "ltg", "lv", "mg", "mk", "ml", "mn", "mr", "ms", "mt", "my", "ne", "nl", "nn",
    "no", "nso", "oc", "om", "or", "pa", "pcm", "pl", "ps", "pt", "qu", "ro", "ru", "rw", "sa", "sdh", "se", "si",
    "sk", "sl", "sn", "so", "sq", "sr", "st", "sv", "sw", "ta", "te", "tg", "th", "tk", "tl", "tr", "tt", "ug",
    "uk", "ur", "uz", "uzs", "vec", "vi", "vo", "wa", "wuu", "xh", "yo", "yue", "zh", "zu", "zxx",
))  # fmt: skip
"""Codes of the languages that `metrics.language` can tell apart."""


class Languages(Section):
    """The languages of a translator's inputs and answers, as ISO 639 codes such as `en`."""

    input: Annotated[str, Field(examples=["en"])]
    """Language of the inputs."""
    answer: Annotated[str, Field(examples=["fr"])]
    """Language that the answers should be in."""

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> Languages:
        for code in (self.input, self.answer):
            if code not in LANGUAGES:
                raise ValueError(f"{code!r} is no code of a language that can be told, such as en, fr or pt")
        if self.input == self.answer:
            raise ValueError("input and answer are the same language; leave `languages` out")
        return self


class Report(Section):
    """The content of the report."""

    title: Annotated[str | None, Field(examples=["Question router"])] = None
    """Title of the page. Without it, the recipe's name."""
    disagreements: Annotated[int, Field(ge=0)] = 12
    """Number of rows to show where teacher and deployed student differ most."""
    answers: Annotated[int, Field(ge=0)] = 12
    """For `generate`: number of rows to show with the answers of teacher and student side by side."""
    languages: Annotated[Languages | None, Field(examples=[{"input": "en", "answer": "fr"}])] = None
    """For a translator: the report shows how many answers are in the input's language instead."""
