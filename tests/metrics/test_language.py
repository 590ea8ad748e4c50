"""Which of two languages a text is in."""

from __future__ import annotations

import pytest
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from distillctl.metrics import language
from distillctl.recipe.report import LANGUAGES

PAIRS = (
    ("Your password has been changed successfully.", "Votre mot de passe a été modifié avec succès."),
    ("Are you sure you want to delete this page?", "Voulez-vous vraiment supprimer cette page ?"),
    ("The selected items were moved to the archive", "Les éléments choisis ont été déplacés dans les archives"),
)


@pytest.mark.parametrize(("english", "french"), PAIRS)
def test_the_likelier_of_two(english: str, french: str) -> None:
    assert language.likelier(english, "en", "fr") == language.likelier(english, "fr", "en") == "en"
    assert language.likelier(french, "en", "fr") == language.likelier(french, "fr", "en") == "fr"


@pytest.mark.parametrize("text", ["", "Menu", "  Menu du compte      ", "x" * (language.LEAST_CHARACTERS - 1)])
def test_short_texts_are_not_judged(text: str) -> None:
    assert language.likelier(text, "en", "fr") is None


def test_a_recipe_may_name_every_language_that_can_be_told() -> None:
    assert frozenset(LanguageIdentifier.from_model_file(MODEL_FILE).labels) == LANGUAGES
