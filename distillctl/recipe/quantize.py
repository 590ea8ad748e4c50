"""The section about smaller graphs: the candidates, and the bounds that one must meet."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from distillctl.recipe.base import Count, Fraction, Positive, Section, Spec


class DynamicInt8(Spec):
    """Weights in int8, and activations in int8 with ranges measured for each input."""

    target: ClassVar[str] = "distillctl.quantizers.dynamic_int8:quantize"

    kind: Literal["dynamic_int8"] = "dynamic_int8"
    per_channel: bool = True
    """Give each output channel of a weight matrix a scale of its own."""
    reduce_range: bool = False
    """Use 7 bits of the weights, for x86 without VNNI, where 8-bit products saturate."""
    table_bits: Literal[4, 8] | None = None
    """Bits of the embedding tables, in blocks of 32 with a scale each. Without it, 8 bits with one scale per table."""

    @property
    def name(self) -> str:
        """Return the name of the candidate, which says how it is made."""
        table = "" if self.table_bits is None else f"_table{self.table_bits}"
        return "dynamic_int8" + "_per_channel" * self.per_channel + "_reduced_range" * self.reduce_range + table


class WeightOnly(Spec):
    """Weights in blocks of 4 or 8 bits (MatMulNBits); activations stay floating-point numbers."""

    target: ClassVar[str] = "distillctl.quantizers.weight_only:quantize"

    kind: Literal["weight_only"] = "weight_only"
    bits: Literal[4, 8] = 4
    """Bits of a weight."""
    block_size: Literal[16, 32, 64, 128, 256] = 32
    """Number of weights that share a scale; smaller in matrices whose rows are not whole blocks (but see `pad`)."""
    pad: bool = False
    """Fill the rows of inner matrices up to whole blocks, instead of using smaller blocks. Long blocks can be quicker,
    for a few more bytes."""
    algorithm: Literal["rtn", "k_quant", "k_quant_mixed", "gptq"] = "k_quant"
    """`rtn` rounds to the nearest value. `k_quant` searches the scale and zero point of the least error.
    `k_quant_mixed` also keeps 8 bits for the matrices that lose most (llama.cpp's choice) and the embedding table.
    `gptq` rounds one column after the other and corrects the later ones for its error, as measured on train rows."""
    table_bits: Literal[4, 8] | None = None
    """Bits of the embedding table, a large part of the weights that a small model reads for every token. Without it, 8
    with `k_quant_mixed`, and otherwise `bits`."""
    accuracy_level: Annotated[int, Field(ge=0, le=4)] = 4
    """How ONNX Runtime multiplies: 4 with activations in int8; 0 or 1 with floating-point ones, which is slower."""
    sensitive: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the inner matrices' weights that keep 8 bits: those of the matrices that, at 4 bits, cost most of the
    student's KL per byte, measured on train rows."""

    @model_validator(mode="after")
    def _mixes_two_sizes(self) -> WeightOnly:
        if self.bits == 8 and (self.algorithm == "k_quant_mixed" or self.sensitive):
            raise ValueError("k_quant_mixed and sensitive keep some matrices at 8 bits; for all of them use k_quant")
        if self.algorithm == "k_quant_mixed" and self.sensitive:
            raise ValueError("k_quant_mixed and sensitive are two ways to say which matrices keep 8 bits; use one")
        return self

    @property
    def name(self) -> str:
        """Return the name of the candidate, which says how it is made."""
        accuracy = "" if self.accuracy_level == 4 else f"_accuracy{self.accuracy_level}"
        table = "" if self.table_bits is None else f"_table{self.table_bits}"
        sensitive = f"_sensitive{round(100 * self.sensitive)}" if self.sensitive else ""
        padded = "_padded" * self.pad
        return f"int{self.bits}_{self.algorithm}_block{self.block_size}{padded}{sensitive}{table}{accuracy}"


class StaticInt8(Spec):
    """Weights and activations in int8, with the activations' ranges fixed on train rows; for `classify`."""

    target: ClassVar[str] = "distillctl.quantizers.static_int8:quantize"

    kind: Literal["static_int8"] = "static_int8"
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    """How a range is chosen from the activations seen: all of them, the range that loses least information, or 99.999 %
    of them."""
    per_channel: bool = True
    """Give each output channel of a weight matrix a scale of its own."""

    @property
    def name(self) -> str:
        """Return the name of the candidate, which says how it is made."""
        return f"static_int8_{self.method}" + "_per_channel" * self.per_channel


class Float16(Spec):
    """Half the bytes, for GPUs and NPUs; processors compute it in float32."""

    target: ClassVar[str] = "distillctl.quantizers.float16:quantize"

    kind: Literal["float16"] = "float16"

    @property
    def name(self) -> str:
        """Return the name of the candidate, which says how it is made."""
        return self.kind


AnyQuantizer = DynamicInt8 | StaticInt8 | Float16 | WeightOnly
Quantizer = Annotated[AnyQuantizer, Field(discriminator="kind")]
CANDIDATES: dict[str, tuple[AnyQuantizer, ...]] = {
    "classifier": (
        DynamicInt8(per_channel=False),
        DynamicInt8(per_channel=False, reduce_range=True),
        DynamicInt8(),
        DynamicInt8(reduce_range=True),
        DynamicInt8(table_bits=4),
        WeightOnly(block_size=64),
        WeightOnly(),
        WeightOnly(block_size=64, sensitive=0.25, table_bits=4),
        WeightOnly(block_size=64, sensitive=0.5, table_bits=4),
    ),
    "decoder": (
        WeightOnly(algorithm="gptq", block_size=64),
        WeightOnly(algorithm="gptq", block_size=64, table_bits=8),
        WeightOnly(algorithm="gptq", table_bits=8),
        WeightOnly(algorithm="gptq", sensitive=0.25, table_bits=8),
        WeightOnly(algorithm="gptq", sensitive=0.5, table_bits=8),
        WeightOnly(bits=8, algorithm="rtn"),
    ),
    "encoder_decoder": (DynamicInt8(), DynamicInt8(reduce_range=True)),
}
"""The default candidates. A decoder waits for reading its weights, and an encoder's products of whole sequences are
faster in int8. 4 bits are tried where few enough weights have them to pass the gate."""

Objective = Literal["smallest", "fastest", "closest"]


class Gate(Section):
    """The bounds that a candidate must meet, compared with the fp32 student on the held-out rows."""

    max_kl: Annotated[Positive | None, Field(examples=[0.1])] = 0.05
    """Largest mean KL(fp32 student ‖ candidate), in nats per row, or per token of the teacher's responses.
    `null`: any."""
    min_same_top: Annotated[Fraction | None, Field(examples=[0.95])] = 0.97
    """Smallest share of rows with the fp32 student's top label; for `generate`, of response tokens with its top one.
    `null`: any."""
    max_score_drop: Fraction = 0.02
    """Largest drop of the score: of labels against references, if there are any; of texts by the metric that scores the
    arms."""
    max_score_drop_high: Annotated[Fraction | None, Field(examples=[0.03])] = None
    """Largest upper end of the drop's 95 % interval, paired over the held-out rows. It makes sure that the true drop is
    no larger; with few rows no candidate can show that. Without it, only the measured drop is bounded."""
    max_bytes: Annotated[Count | None, Field(examples=[11_500_000])] = None
    """Largest size of the graphs and their weights together. Without it, any size."""


class Quantize(Section):
    """The smaller graphs that are built, and the choice among them."""

    candidates: Annotated[tuple[Quantizer, ...], Field(min_length=1)] | None = None
    """The graphs to build and compare. Without it: for `classify`, dynamic int8 and weights in int4 blocks; for
    decoders, weights in int4 and int8 blocks; for encoder–decoders, dynamic int8."""
    gate: Gate = Gate()
    """The bounds that a candidate must meet to be kept. If none does, the command ends with exit code 6."""
    objective: Objective = "smallest"
    """The candidate inside the gate that is kept: the one with the fewest bytes, the shortest median answer, or the
    lowest KL. With `gate.max_bytes`, `closest` is the best of that size."""
    budget_seconds: Annotated[Positive | None, Field(examples=[600])] = None
    """Begin no further candidate after this many seconds of building. Candidates are tried in the order of the list."""

    @model_validator(mode="after")
    def _names_differ(self) -> Quantize:
        names = [candidate.name for candidate in self.candidates or ()]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{twice} is listed twice")
        return self
