"""Writes corpus/gguf: `python -m tests.hostile.make_gguf`. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md"""

from __future__ import annotations

import math
import struct
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus" / "gguf"
U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10
VOCABULARY = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(37))]
WIDTH, FEED = 8, 8


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name.encode() if isinstance(name, str) else name) + struct.pack("<I", kind) + value


def u32(name: str, value: int) -> bytes:
    return key(name, U32, struct.pack("<I", value))


def array(name: str, kind: int, items: list[bytes], count: int | None = None) -> bytes:
    return key(name, ARRAY, struct.pack("<IQ", kind, len(items) if count is None else count) + b"".join(items))


def keys(**other: int | None) -> list[bytes]:
    """Of a llama of one layer; ``other`` replaces numbers of the group `llama.`, or (None) leaves them out."""
    numbers: dict[str, int | None] = {
        "context_length": 64, "embedding_length": WIDTH, "block_count": 1, "feed_forward_length": FEED,
        "attention__head_count": 2, "attention__head_count_kv": 2, "vocab_size": len(VOCABULARY),
    } | other  # fmt: skip
    return [
        key("general.architecture", STRING, text(b"llama")),
        *(u32(f"llama.{name.replace('__', '.')}", value) for name, value in numbers.items() if value is not None),
        key("llama.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-5)),
        key("tokenizer.ggml.model", STRING, text(b"llama")),
        array("tokenizer.ggml.tokens", STRING, [text(token) for token in VOCABULARY]),
        array("tokenizer.ggml.scores", F32, [struct.pack("<f", 0)] * len(VOCABULARY)),
        array("tokenizer.ggml.token_type", 5, [struct.pack("<i", 6 if t.startswith(b"<0") else 3) for t in VOCABULARY]),
    ]


SHAPES = {
    "token_embd.weight": (WIDTH, len(VOCABULARY)), "output_norm.weight": (WIDTH,), "output.weight": (WIDTH, len(VOCABULARY)),
    "blk.0.attn_norm.weight": (WIDTH,), "blk.0.ffn_norm.weight": (WIDTH,),
    "blk.0.attn_q.weight": (WIDTH, WIDTH), "blk.0.attn_k.weight": (WIDTH, WIDTH),
    "blk.0.attn_v.weight": (WIDTH, WIDTH), "blk.0.attn_output.weight": (WIDTH, WIDTH),
    "blk.0.ffn_gate.weight": (WIDTH, FEED), "blk.0.ffn_up.weight": (WIDTH, FEED), "blk.0.ffn_down.weight": (FEED, WIDTH),
}  # fmt: skip


def tensor(
    name: str | bytes, shape: tuple[int, ...], offset: int, kind: int = 1, dimensions: int | None = None
) -> bytes:
    """kind 1: two bytes a weight; 2: Q4_0, in blocks of 32 weights."""
    return (
        text(name.encode() if isinstance(name, str) else name)
        + struct.pack("<I", len(shape) if dimensions is None else dimensions)
        + b"".join(struct.pack("<Q", size) for size in shape)
        + struct.pack("<IQ", kind, offset)
    )


def tensors(shapes: dict[str, tuple[int, ...]] | None = None) -> tuple[list[bytes], int]:
    """Headers, and the bytes of weights that they need."""
    found, offset = [], 0
    for name, shape in (shapes or SHAPES).items():
        found.append(tensor(name, shape, offset))
        offset += -(-2 * math.prod(shape) // 32) * 32
    return found, offset


def file(
    metadata: list[bytes] | None = None, weights: list[bytes] | None = None, data: int | None = None, *,
    version: int = 3, key_count: int | None = None, tensor_count: int | None = None, magic: bytes = b"GGUF",
) -> bytes:  # fmt: skip
    metadata = keys() if metadata is None else metadata
    of_whole, size = tensors()
    weights = of_whole if weights is None else weights
    head = magic + struct.pack("<I", version)
    head += struct.pack(
        "<QQ", len(weights) if tensor_count is None else tensor_count, len(metadata) if key_count is None else key_count
    )
    head += b"".join(metadata) + b"".join(weights)
    head += b"\0" * (-len(head) % 32)
    return head + b"\0" * (size if data is None else data)


def files() -> dict[str, bytes]:
    whole = file()
    of_whole, size = tensors()
    first = tensor("token_embd.weight", SHAPES["token_embd.weight"], 0)
    many = 2**63
    return {
        "empty": b"",
        "only-magic": b"GGUF",
        "wrong-magic": file(magic=b"GGML"),
        "version-0": file(version=0),
        "version-1": file(version=1),
        "version-99": file(version=99),
        "version-of-the-other-byte-order": whole[:4] + struct.pack(">I", 3) + whole[8:],
        "cut-in-the-counts": whole[:13],
        "cut-in-the-keys": whole[:150],
        "cut-in-the-tokens": whole[:700],
        "cut-in-the-tensors": whole[: len(whole) - size - 300],
        "cut-in-the-weights": whole[: -size // 2],
        "cut-before-the-last-byte": whole[:-40],
        "keys-counted-beyond": file(key_count=2**62),
        "keys-counted-four-billion": file(key_count=2**32),
        "keys-counted-one-more": file(key_count=len(keys()) + 1),
        "keys-none": file([], [], 0),
        "key-name-beyond": file([struct.pack("<Q", 2**62) + b"general"]),
        "key-name-of-a-gigabyte": file([struct.pack("<Q", 2**30) + b"general"]),
        "key-name-of-no-utf8": file([*keys(), key(b"\xff\xfe.x", U32, struct.pack("<I", 1))]),
        "key-name-empty": file([*keys(), key(b"", U32, struct.pack("<I", 1))]),
        "key-twice": file([*keys(), u32("llama.block_count", 2)]),
        "key-of-unknown-kind": file([*keys(), key("x.y", 77, b"\0" * 8)]),
        "text-beyond": file([*keys(), key("general.name", STRING, text(b"x", 2**62))]),
        "text-below-nothing": file([*keys(), key("general.name", STRING, text(b"x", 2**64 - 1))]),
        "text-of-no-utf8": file([key("general.name", STRING, text(b"\xff\xfe")), *keys()]),
        "text-of-escape-codes": file([key("general.architecture", STRING, text(b"\x1b[2Jllama")), *keys()[1:]]),
        "array-counted-beyond": file([*keys(), array("x.y", U32, [], 2**62)]),
        "array-counted-half-a-billion-bytes": file([*keys(), array("x.y", U32, [], 2**29)]),
        "array-of-texts-counted-beyond": file([*keys(), array("x.y", STRING, [text(b"a")] * 3, 2**40)]),
        "array-of-unknown-kind": file([*keys(), array("x.y", 99, [], 1)]),
        "array-of-arrays-deep": file([*keys(), key("x.y", ARRAY, struct.pack("<IQ", ARRAY, 1) * 300)]),
        "array-of-empty-arrays": file([*keys(), array("x.y", ARRAY, [struct.pack("<IQ", U32, 0)] * 300)]),
        "array-of-empty-texts": file([*keys(), array("x.y", STRING, [text(b"")] * 500)]),
        "architecture-missing": file(keys()[1:]),
        "architecture-unknown": file([key("general.architecture", STRING, text(b"klingon")), *keys()[1:]]),
        "architecture-a-path": file([key("general.architecture", STRING, text(b"../../outside/secret.txt")), *keys()[1:]]),
        "architecture-a-number": file([u32("general.architecture", 3), *keys()[1:]]),
        "architecture-an-array": file([array("general.architecture", STRING, [text(b"llama")]), *keys()[1:]]),
        "layers-four-billion": file(keys(block_count=2**32 - 1)),
        "layers-none": file(keys(block_count=0)),
        "layers-missing": file(keys(block_count=None)),
        "layers-twenty-thousand": file(keys(block_count=20_000)),
        "width-four-billion": file(keys(embedding_length=2**32 - 1)),
        "width-zero": file(keys(embedding_length=0)),
        "feed-forward-four-billion": file(keys(feed_forward_length=2**32 - 1)),
        "heads-none": file(keys(attention__head_count=0)),
        "heads-four-billion": file(keys(attention__head_count=2**32 - 1)),
        "heads-three-for-thirty-two": file(keys(attention__head_count=3)),
        "vocabulary-four-billion": file(keys(vocab_size=2**32 - 1)),
        "context-four-billion": file(keys(context_length=2**32 - 1)),
        "experts-four-billion": file(keys(expert_count=2**32 - 1, expert_used_count=2)),
        "rope-dimensions-four-billion": file(keys(rope__dimension_count=2**32 - 1)),
        "alignment-zero": file([*keys(), u32("general.alignment", 0)]),
        "alignment-four-billion": file([*keys(), u32("general.alignment", 2**32 - 1)]),
        "alignment-seven": file([*keys(), u32("general.alignment", 7)]),
        "alignment-a-text": file([*keys(), key("general.alignment", STRING, text(b"32"))]),
        "tokens-none": file([one for one in keys() if b"tokenizer" not in one]),
        "tokens-without-scores": file([one for one in keys() if b"scores" not in one]),
        "tokens-all-the-same": file([array("tokenizer.ggml.tokens", STRING, [text(b"a")] * 40) if b"ml.tokens" in one else one for one in keys()]),
        "tokens-of-no-utf8": file([array("tokenizer.ggml.tokens", STRING, [text(b"\xff")] * 40) if b"ml.tokens" in one else one for one in keys()]),
        "tokens-a-number": file([u32("tokenizer.ggml.tokens", 3) if b"ml.tokens" in one else one for one in keys()]),
        "scores-too-few": file([array("tokenizer.ggml.scores", F32, [struct.pack("<f", 0)]) if b"scores" in one else one for one in keys()]),
        "tokenizer-unknown": file([key("tokenizer.ggml.model", STRING, text(b"klingon")) if b"ggml.model" in one else one for one in keys()]),
        "chat-template-a-bomb": file([*keys(), key("tokenizer.chat_template", STRING, text(b"{{ 'a' * 9999999999 }}"))]),
        "special-token-beyond": file([*keys(), u32("tokenizer.ggml.bos_token_id", 2**32 - 1)]),
        "tensors-counted-beyond": file(tensor_count=2**62),
        "tensors-counted-four-billion": file(tensor_count=2**32),
        "tensors-none": file(weights=[], data=0),
        "tensor-name-beyond": file(weights=[text(b"token", 2**62), *of_whole]),
        "tensor-name-a-path": file(weights=[*of_whole, tensor("../../outside/x", (32,), 0)]),
        "tensor-name-of-no-utf8": file(weights=[*of_whole, tensor(b"\xff\xfe", (32,), 0)]),
        "tensor-twice": file(weights=[*of_whole, first]),
        "tensor-of-no-dimensions": file(weights=[tensor("token_embd.weight", (), 0), *of_whole[1:]]),
        "tensor-of-a-billion-dimensions": file(weights=[tensor("token_embd.weight", (8, 40), 0, dimensions=2**30), *of_whole[1:]]),
        "tensor-of-five-dimensions": file(weights=[tensor("token_embd.weight", (8, 2, 2, 2, 5), 0), *of_whole[1:]]),
        "tensor-size-beyond": file(weights=[tensor("token_embd.weight", (2**62, 8), 0), *of_whole[1:]]),
        "tensor-sizes-that-wrap-around": file(weights=[tensor("token_embd.weight", (many, 2), 0), *of_whole[1:]]),
        "tensor-sizes-that-wrap-to-its-own": file(weights=[tensor("token_embd.weight", (2**32, 2**32), 0), *of_whole[1:]]),
        "tensor-size-zero": file(weights=[tensor("token_embd.weight", (0, 40), 0), *of_whole[1:]]),
        "tensor-of-half-a-block": file(weights=[tensor("token_embd.weight", (33, 40), 0, kind=2), *of_whole[1:]]),
        "tensor-of-unknown-kind": file(weights=[tensor("token_embd.weight", (8, 40), 0, kind=199), *of_whole[1:]]),
        "tensor-of-a-kind-that-is-gone": file(weights=[tensor("token_embd.weight", (8, 40), 0, kind=4), *of_whole[1:]]),
        "tensor-outside": file(weights=[tensor("token_embd.weight", (8, 40), 2**40), *of_whole[1:]]),
        "tensor-offset-that-wraps": file(weights=[tensor("token_embd.weight", (8, 40), 2**64 - 32), *of_whole[1:]]),
        "tensor-offset-unaligned": file(weights=[tensor("token_embd.weight", (8, 40), 1), *of_whole[1:]]),
        "tensors-on-top-of-each-other": file(weights=tensors()[0][:1] + [tensor(name, shape, 0) for name, shape in list(SHAPES.items())[1:]]),
        "tensors-of-other-shapes": file(weights=tensors({name: shape[::-1] for name, shape in SHAPES.items()})[0]),
        "tensors-of-a-bert": file(weights=tensors({f"bert.{name}": shape for name, shape in SHAPES.items()})[0]),
        "zip-not-gguf": b"PK\x03\x04" + b"\0" * 200,
        "a-pickle": b"\x80\x04c" + b"os\nsystem\n(Vtouch ../outside/pwned\ntR.",
    }  # fmt: skip


_WITHOUT_WEIGHTS = ("version", "wrong", "keys-counted", "key-", "text-b", "array")
"""Files in which what is wrong comes so early that no weights are needed."""


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for number, (what, data) in enumerate(files().items(), 1):
        if what.startswith(_WITHOUT_WEIGHTS):
            data = data[: -tensors()[1]]
        assert len(data) < 20_000, (what, len(data))
        (FOLDER / f"{number:03d}-{what}.gguf").write_bytes(data)


if __name__ == "__main__":
    main()
