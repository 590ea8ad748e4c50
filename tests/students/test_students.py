"""Students: the right class for the task, tokenizers framed for it, and what a recipe gets wrong told in good time."""

import json
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

from distillctl import pipeline
from distillctl.errors import DataError, RecipeError, UnavailableError
from distillctl.models import model_source
from distillctl.recipe import implementation
from distillctl.run_dir.workspace import Workspace
from distillctl.students import preflight
from distillctl.students.student import Corpus, Student
from distillctl.students.vocabulary import vocabulary_digest
from tests.fixtures import tiny, tiny_generate

CORPUS = Corpus(tiny_generate.texts(30), [])
GENERATE = {"kind": "generate", "max_new_tokens": 8}
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2}
MARIAN = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}


@pytest.fixture
def folder(tmp_path):
    """A decoder with its tokenizer, as a checkpoint."""
    return save(tmp_path / "decoder", tiny_generate.decoder(), tiny_generate.bpe_tokenizer())


def save(path, model, tokenizer):
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def recipe(task=GENERATE, contexts=None, **student):
    context = {"full": {"template": "Answer: {{ input }}"}} | (contexts or {})
    return tiny.recipe(task=task, contexts=context, student={"kind": "pretrained"} | student)


def build(*args, corpus=CORPUS, **kwargs):
    made = recipe(*args, **kwargs)
    return implementation(made.student)(made.student, made, corpus)


# ── pretrained and truncated ─────────────────────────────────────────────────────────────────────


def test_a_pretrained_decoder_keeps_its_head_and_room_for_the_response(folder):
    who = build(model=str(folder))
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(who.model.eval()(ids).logits, tiny_generate.decoder()(ids).logits)
    assert (who.max_length, who.max_view, who.is_encoder_decoder) == (128, 120, False)
    assert who.vocabulary_digest == vocabulary_digest(tiny_generate.bpe_tokenizer())
    assert build(model=str(folder), max_length=20).max_view == 12


def test_an_encoder_decoder_keeps_its_head_and_needs_no_room(tmp_path):
    for kind in ("t5", "marian"):
        path = save(tmp_path / kind, tiny_generate.seq2seq(kind), tiny_generate.bpe_tokenizer(appends_eos=True))
        who = build(model=str(path))
        assert (who.max_length, who.max_view, who.is_encoder_decoder) == (128, 128, True)
        ids = {"input_ids": torch.tensor([[5, 6, 1]]), "decoder_input_ids": torch.tensor([[0, 9]])}
        torch.testing.assert_close(who.model.eval()(**ids).logits, tiny_generate.seq2seq(kind)(**ids).logits)
        assert encoded(who, ["the sea"], ["a"])[0][-1] == tiny_generate.EOS_ID


def test_a_truncated_decoder_has_the_chosen_layers(folder):
    who = build(kind="truncated", model=str(folder), layers=[1])
    whole = tiny_generate.decoder()
    assert who.model.config.num_hidden_layers == 1
    assert torch.equal(who.model.model.layers[0].mlp.up_proj.weight, whole.model.layers[1].mlp.up_proj.weight)
    assert torch.equal(who.model.lm_head.weight, whole.lm_head.weight)
    assert len(who.model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False)[0]) == 5


def test_layers_and_vocabulary_are_cut_together(folder):
    corpus = Corpus(["the sea"], [[270, 261, 1]])
    who = build(kind="truncated", model=str(folder), layers=[0], vocabulary={"merges": 1}, corpus=corpus)
    assert who.model.config.vocab_size == len(who.kept_ids) == len(who.tokenizer) < 300
    assert {270, 261, 1} < set(who.kept_ids.tolist())
    assert (
        who.kept_ids[who.tokenizer("the sea").input_ids].tolist() == tiny_generate.bpe_tokenizer()("the sea").input_ids
    )
    assert who.vocabulary_facts.tokens_before == len(who.remap) == 300
    assert who.vocabulary_digest == vocabulary_digest(tiny_generate.bpe_tokenizer())


def test_classifiers_are_trimmed_in_their_recipe_too(tmp_path):
    path = save(tmp_path / "student", tiny.model("llama"), tiny_generate.bpe_tokenizer())
    config = json.loads((path / "config.json").read_text())
    who = build({"labels": tiny.LABELS}, model=str(path), corpus=Corpus(["a"], []))
    assert (who.kept_ids, who.max_view) == (None, who.max_length)
    assert who.model.config.vocab_size == config["vocab_size"] == tiny.VOCABULARY
    path = save(tmp_path / "wide", tiny_generate.decoder(), tiny_generate.bpe_tokenizer())
    who = build({"labels": tiny.LABELS}, model=str(path), vocabulary={"merges": 1}, corpus=Corpus(["the sea"], []))
    assert who.model.config.num_labels == 3
    assert who.model.get_input_embeddings().num_embeddings == len(who.tokenizer) == len(who.kept_ids) < 300


def test_a_decoder_without_a_head_is_no_whole_model(tmp_path):
    headless = save(tmp_path / "headless", tiny_generate.decoder().model, tiny_generate.bpe_tokenizer())
    with pytest.raises(UnavailableError, match=r"has no weights for lm_head\.weight"):
        build(model=str(headless))


def test_an_encoder_cannot_write(tmp_path):
    bert = AutoModelForMaskedLM.from_config(tiny.model("bert").config)
    path = save(tmp_path / "bert", bert, tiny.tokenizer())
    with pytest.raises(RecipeError, match="bert sees later tokens, so it is not a decoder"):
        build(model=str(path))
    path = save(tmp_path / "distilbert", tiny.model("distilbert"), tiny.tokenizer())
    with pytest.raises(RecipeError, match=r"student\.model: distilbert cannot generate text"):
        build(model=str(path))


def encoded(who: Student, texts: list[str], ids: list[str]) -> list[list[int]]:
    """The views' token ids."""
    return [tokens for _, tokens in who.encode([(ids, texts)])]


# ── views ────────────────────────────────────────────────────────────────────────────────────────


def test_views_leave_room_for_the_response_and_are_never_empty(folder):
    who = build(model=str(folder), max_length=12)
    assert len(encoded(who, ["abcd"], ["x"])[0]) == 4
    with pytest.raises(DataError, match=r"row y: .* takes 12 and keeps 8 of them for the response"):
        encoded(who, ["abcd", "abcdefg"], ["x", "y"])
    with pytest.raises(DataError, match=r"row y: the simplified view has 7 tokens, .*\(1 more row is too long\)"):
        encoded(who, ["abcdef", "abcdefg", "abcd"], ["x", "y", "z"])
    with pytest.raises(DataError, match="row z: the simplified view has no tokens"):
        encoded(who, [""], ["z"])
    who.tokenizer.add_tokens(["zzz"])
    with pytest.raises(UnavailableError, match=rf"makes the id {len(who.tokenizer) - 1} of row q"):
        encoded(who, ["zzz"], ["q"])


def framed(template):
    """A tokenizer with `<bos>` and an added frame."""
    tokenizer = tiny_generate.bpe_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    ids = [("<bos>", tokenizer.bos_token_id), (tiny_generate.EOS, tiny_generate.EOS_ID)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        **tokenizer.special_tokens_map,
        chat_template=tokenizer.chat_template,
        model_max_length=64,
    )


@pytest.mark.parametrize(
    ("template", "text", "chat"),
    [("$A", [], []), ("<bos> $A", ["<bos>"], []), ("<bos> $A <eos>", ["<bos>"], []), ("$A <eos>", [], [])],
)
def test_the_response_goes_on_where_the_view_ends(tmp_path, template, text, chat):
    path = save(tmp_path / "student", tiny_generate.decoder(vocabulary=301), framed(template))
    messages = {"simplified": {"messages": [{"role": "user", "content": "{{ input }}"}]}}
    for contexts, before in (({}, text), (messages, chat)):
        who = build(contexts=contexts, model=str(path))
        ids = encoded(who, ["the sea"], ["a"])[0]
        assert who.tokenizer.convert_ids_to_tokens(ids) == [*before, "t", "h", "e", "Ġs", "ea"]
        who.tokenizer.save_pretrained(tmp_path / "saved")
        assert AutoTokenizer.from_pretrained(tmp_path / "saved")("the sea").input_ids == ids
        assert Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json")).encode("the sea").ids == ids
        assert who.tokenizer.chat_template == framed(template).chat_template
        assert who.max_length == 64


def test_a_decoder_without_a_padding_token_pads_with_its_end_and_grows_no_token(tmp_path):
    tokenizer = tiny_generate.bpe_tokenizer()
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tiny_generate.EOS)
    who = build(model=str(save(tmp_path / "student", tiny_generate.decoder(), bare)))
    assert who.tokenizer.pad_token_id == who.model.config.pad_token_id == tiny_generate.EOS_ID
    assert who.model.generation_config.pad_token_id == tiny_generate.EOS_ID
    assert len(who.tokenizer) == 300


# ── new models ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("llama", SIZES),
        ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 2}),
        ("t5", T5),
        ("marian", MARIAN),
        ("bart", MARIAN),
    ],
)
@pytest.mark.parametrize("new", [False, True])
def test_a_new_model_takes_its_ids_from_its_tokenizer(tmp_path, model_type, config, new):
    tiny_generate.bpe_tokenizer(appends_eos=model_type in ("t5", "marian", "bart")).save_pretrained(
        tmp_path / "tokenizer"
    )
    tokenizer = {"model": "bpe", "vocabulary": 350} if new else str(tmp_path / "tokenizer")
    who = build(kind="from_config", model_type=model_type, config=config, tokenizer=tokenizer)
    tokenizer, model = who.tokenizer, who.model
    assert model.config.vocab_size == len(tokenizer) == model.get_output_embeddings().weight.shape[0]
    for owner in (model.config, model.generation_config):
        assert (owner.pad_token_id, owner.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
        assert getattr(owner, "bos_token_id", None) in (None, tokenizer.bos_token_id)
    ids = encoded(who, ["the sea", ""] if new else ["the sea"], ["a", "b"][: 1 + new])
    if who.is_encoder_decoder:
        assert model.generation_config.decoder_start_token_id == tokenizer.pad_token_id
        assert getattr(model.generation_config, "forced_eos_token_id", None) is None
        assert ids[0][-1] == tokenizer.eos_token_id
    else:
        assert ids[0][-1] != tokenizer.eos_token_id
    model.eval()
    said = model.generate(torch.tensor([ids[0]]), max_new_tokens=5, do_sample=False)
    assert len(said[0]) > 1
    assert int(said.max()) < len(tokenizer)


def test_a_new_classifier_can_have_a_new_tokenizer():
    spec = {"kind": "from_config", "model_type": "bert", "config": SIZES, "tokenizer": {"vocabulary": 350}}
    who = build({"labels": tiny.LABELS}, **spec)
    [ids] = encoded(who, ["the sea"], ["a"])
    assert (ids[0], ids[-1]) == (who.tokenizer.cls_token_id, who.tokenizer.sep_token_id)
    assert who.model(torch.tensor([ids])).logits.shape == (1, 3)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"model_type": "lama"}, r"student\.model_type: transformers has no architecture 'lama'"),
        ({"model_type": "distilbert"}, r"student\.model_type: distilbert cannot generate text"),
        ({"model_type": "bert", "config": SIZES}, "bert sees later tokens"),
        (
            {"model_type": "llama", "config": SIZES | {"hidden_size": 33}},
            r"student\.config: the model cannot be built: .*hidden size \(33\) is not a multiple",
        ),
        (
            {"model_type": "llama", "config": SIZES | {"vocab_size": 20}},
            "vocab_size: the tokenizer has more tokens: 320",
        ),
        ({"model_type": "llama", "config": {"layers": 2}}, r"student\.config: llama has no 'layers'"),
    ],
)
def test_what_cannot_be_built_is_said(spec, told):
    with pytest.raises(RecipeError, match=told):
        build(kind="from_config", tokenizer={"model": "bpe", "vocabulary": 320}, **spec)


def test_a_new_bert_can_write_if_it_is_told_to_look_back():
    spec = {"model_type": "bert", "config": SIZES | {"is_decoder": True}, "tokenizer": {"vocabulary": 320}}
    assert not build(kind="from_config", **spec).is_encoder_decoder


def test_a_new_tokenizer_has_no_revision():
    with pytest.raises(ValueError, match="revision belongs to a tokenizer from a hub"):
        recipe(kind="from_config", model_type="llama", tokenizer={}, revision="main")


# ── preflight ────────────────────────────────────────────────────────────────────────────────────────


def test_what_does_not_fit_is_told_without_torch(folder, tmp_path):
    cases = {
        "layers": {"kind": "truncated", "model": str(folder), "layers": [0, 2]},
        "room": {"kind": "pretrained", "model": str(folder), "max_length": 8},
    }
    path = tmp_path / "recipes.json"
    path.write_text(json.dumps({name: recipe(**spec).model_dump(mode="json") for name, spec in cases.items()}))
    script = f"""
import json, sys
from distillctl.recipe import Recipe
from distillctl.students import preflight
for name, recipe in json.load(open({str(path)!r})).items():
    try:
        preflight.check_student(Recipe.model_validate(recipe))
    except Exception as error:
        print(name, error)
print({{"torch", "transformers"}} & set(sys.modules))
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "layers student.layers: the model has layers 0 to 1, and the recipe asks for [0, 2]" in said
    assert "room student.max_length: a view and a response of up to 8 tokens do not fit into the student's 8" in said
    assert said.endswith("set()\n")


def test_what_fits_or_cannot_be_told_passes(folder, tmp_path):
    preflight.check_student(recipe(kind="truncated", model=str(folder), layers=[1, 0]))
    seq2seq = save(tmp_path / "t5", tiny_generate.seq2seq(), tiny_generate.bpe_tokenizer())
    preflight.check_student(recipe(model=str(seq2seq), max_length=8))
    (tmp_path / "empty").mkdir()
    preflight.check_student(recipe(kind="truncated", model=str(tmp_path / "empty"), layers=[99]))
    preflight.check_student(recipe(kind="from_config", model_type="llama", tokenizer={}, max_length=8))


def test_room_is_looked_after_when_the_model_is_there_too():
    spec = {"kind": "from_config", "model_type": "llama", "config": SIZES, "tokenizer": {"vocabulary": 320}}
    with pytest.raises(RecipeError, match="up to 8 tokens do not fit into the student's 8"):
        build(max_length=8, **spec)


def test_a_new_tokenizer_has_no_source(tmp_path):
    made = recipe(kind="from_config", model_type="llama", config=SIZES, tokenizer={"vocabulary": 320})
    assert model_source.student(made) is None
    states = {state.stage: state.state for state in pipeline.status(_with_teacher(made, tmp_path), Workspace(tmp_path))}
    assert states["train"] == "missing"


def _with_teacher(made, folder):
    (folder / "teacher").mkdir()
    return made.model_copy(update={"teacher": made.teacher.model_copy(update={"model": str(folder / "teacher")})})


def test_a_plain_student_has_no_new_ids():
    who = Student(tiny_generate.decoder(), tiny_generate.bpe_tokenizer(), 9)
    assert who.remap is None
    assert AutoConfig.for_model("llama").is_encoder_decoder is who.is_encoder_decoder
