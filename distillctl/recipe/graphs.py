"""From the trained student to the phone: export, quantize, bench, report."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from distillctl.recipe import profiles
from distillctl.recipe.base import Closed, Count, Fraction, Positive, Spec


class Export(Closed):
    opset: Count | None = None
    max_logit_difference: Positive = 1e-4
    """Largest |Δlogit| between ONNX Runtime and PyTorch over the eval rows; of text relative to the largest |logit|."""
    fuse: bool = True
    """Of classifiers: attention as ONNX Runtime's own operator; without it the graph has ONNX's standard ones only, for
    accelerators and other runtimes, and is slower."""
    builder: Literal["auto", "genai", "trace"] = "auto"
    """Of decoders: "genai" builds the graph as onnxruntime-genai does, "trace" traces it, "auto" traces only where
    genai's builder cannot do it."""
    prompts: Count = 50
    """Of text: eval rows (fewer if there are fewer) whose greedy answers must equal PyTorch's, token for token."""


class DynamicInt8(Spec):
    target: ClassVar[str] = "distillctl.quantizers.dynamic_int8:quantize"

    kind: Literal["dynamic_int8"] = "dynamic_int8"
    per_channel: bool = True
    reduce_range: bool = False
    """7-bit weights: for x86 without VNNI, where 8-bit products saturate."""
    table_bits: Literal[4, 8] | None = None
    """Of tables of embeddings, in blocks of 32 with a scale each; left out, 8 bits with one scale for a whole table."""

    @property
    def name(self) -> str:
        table = "" if self.table_bits is None else f"_table{self.table_bits}"
        return "dynamic_int8" + "_per_channel" * self.per_channel + "_reduced_range" * self.reduce_range + table


class WeightOnly(Spec):
    """Weights in blocks of 4 or 8 bits (MatMulNBits), activations in float."""

    target: ClassVar[str] = "distillctl.quantizers.weight_only:quantize"

    kind: Literal["weight_only"] = "weight_only"
    bits: Literal[4, 8] = 4
    block_size: Literal[16, 32, 64, 128, 256] = 32
    """Weights with a scale of their own; fewer in matrices whose rows are no whole number of blocks."""
    algorithm: Literal["rtn", "k_quant", "k_quant_mixed"] = "k_quant"
    """rtn: rounded to nearest; k_quant: scale and zero point of the least error; k_quant_mixed: and the matrices that
    cost most at 8 bits (llama.cpp's choice, and the table of tokens)."""
    table_bits: Literal[4, 8] | None = None
    """Of the table of tokens, which a small model reads as a good part of its weights for every token; left out, 8 with
    k_quant_mixed and otherwise ``bits``."""
    accuracy_level: Annotated[int, Field(ge=0, le=4)] = 4
    """4: products of int8 activations (ONNX Runtime's MatMulNBits); 0 or 1: of float ones, slower."""
    sensitive: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the inner matrices' weights kept at 8 bits: those that, at 4, cost most of the student's KL per byte
    (measured on train rows, `distillctl.quantizers.sensitivity`)."""

    @model_validator(mode="after")
    def _mixes_two_sizes(self) -> WeightOnly:
        if self.bits == 8 and (self.algorithm == "k_quant_mixed" or self.sensitive):
            raise ValueError("k_quant_mixed and sensitive keep some matrices at 8 bits; for all of them use k_quant")
        if self.algorithm == "k_quant_mixed" and self.sensitive:
            raise ValueError("k_quant_mixed and sensitive are two ways to say which matrices keep 8 bits; use one")
        return self

    @property
    def name(self) -> str:
        accuracy = "" if self.accuracy_level == 4 else f"_accuracy{self.accuracy_level}"
        table = "" if self.table_bits is None else f"_table{self.table_bits}"
        sensitive = f"_sensitive{round(100 * self.sensitive)}" if self.sensitive else ""
        return f"int{self.bits}_{self.algorithm}_block{self.block_size}{sensitive}{table}{accuracy}"


class StaticInt8(Spec):
    """Weights and activations in int8, the activations' ranges fixed on train rows; for classifiers."""

    target: ClassVar[str] = "distillctl.quantizers.static_int8:quantize"

    kind: Literal["static_int8"] = "static_int8"
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    """How a range is taken from what was seen: all of it; what loses least information; 99.999 % of it."""
    per_channel: bool = True

    @property
    def name(self) -> str:
        return f"static_int8_{self.method}" + "_per_channel" * self.per_channel


class Float16(Spec):
    """Half the bytes; for GPUs and NPUs. Processors compute it in float32."""

    target: ClassVar[str] = "distillctl.quantizers.float16:quantize"

    kind: Literal["float16"] = "float16"

    @property
    def name(self) -> str:
        return self.kind


AnyQuantizer = DynamicInt8 | StaticInt8 | Float16 | WeightOnly
Quantizer = Annotated[AnyQuantizer, Field(discriminator="kind")]
CANDIDATES: dict[str, tuple[AnyQuantizer, ...]] = {
    "labels": (
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
        WeightOnly(block_size=64),
        WeightOnly(),
        WeightOnly(algorithm="k_quant_mixed", block_size=64, table_bits=4),
        WeightOnly(algorithm="k_quant_mixed"),
        WeightOnly(sensitive=0.25, table_bits=8),
        WeightOnly(sensitive=0.5, table_bits=8),
        WeightOnly(bits=8, algorithm="rtn"),
    ),
    "encoder_decoder": (DynamicInt8(), DynamicInt8(reduce_range=True)),
}
"""What is tried where the recipe does not say it: per-token weights are what a decoder waits for, and an encoder's
products of whole sequences are faster in int8; 4 bits where they are few enough to hold the gate."""


Objective = Literal["smallest", "fastest", "closest"]


class Gate(Closed):
    """What a candidate must hold, against the fp32 student on the held-out rows."""

    max_kl: Positive = 0.05
    """KL(fp32 student ‖ candidate), mean nats per row of labels, or of texts per token of the teacher's response."""
    min_same_top: Fraction = 0.97
    """Share of rows with the fp32 student's top label, or of texts of the responses' tokens with its top token."""
    max_score_drop: Fraction = 0.02
    """Of the score: of labels against references, when there are any; of texts by the first of task.metrics
    that measures content."""
    max_bytes: Count | None = None
    """Of the graphs and their weights."""


class Quantize(Closed):
    candidates: Annotated[tuple[Quantizer, ...], Field(min_length=1)] | None = None
    """Left out: for labels dynamic int8 and weights in int4 blocks; for decoders weights in int4 and int8 blocks; for
    encoder–decoders dynamic int8."""
    gate: Gate = Gate()
    objective: Objective = "smallest"
    """Which of those inside the gate is kept: that of the fewest bytes, of the shortest median answer, or of the lowest
    KL (with gate.max_bytes the best that a size allows)."""
    budget_seconds: Positive | None = None
    """Begin no further candidate after so many seconds of building; those listed first are tried first."""

    @model_validator(mode="after")
    def _names_differ(self) -> Quantize:
        names = [candidate.name for candidate in self.candidates or ()]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{twice} is listed twice")
        return self


class LoadGen(Closed):
    """MLPerf's rules for SingleStream; the extra "loadgen" brings it."""

    min_queries: Count = 1024
    min_seconds: Positive = 60


class Bench(Closed):
    threads: Count | None = None
    """Left out, the profile's, or 1."""
    queries: Count = 200
    """Timed queries per model, over all its processes; of the teacher as many fewer as it has fewer of those."""
    processes: Count = 5
    """Fresh processes per model; of the teacher three at most, for loading it takes seconds."""
    warmup: Annotated[int, Field(ge=0)] = 5
    """Untimed queries per process."""
    max_seconds: Positive | None = None
    """Stop timing a model after so many seconds in all, with at least two queries per process."""
    quantized_teacher: bool = True
    """Also time a local teacher in onnxruntime-genai, its weights in int4, its prompt cached. Its graph is built once,
    and kept in the user's cache."""
    profile: str | None = None
    """Of those in distillctl/profiles: the threads and memory a device would give, on this host, not a phone."""
    sustained_seconds: Positive | None = None
    """Also run the deployed graph so long without a pause, to compare the end with the beginning."""
    loadgen: LoadGen | None = None
    """Also let MLPerf LoadGen drive the deployed graph; ``{}`` is by its own rules. Left out, it does not."""

    @field_validator("profile")
    @classmethod
    def _is_there(cls, name: str | None) -> str | None:
        if name is not None and name not in profiles.names():
            raise ValueError(f"no such profile; there are {', '.join(profiles.names())}")
        return name

    @property
    def device(self) -> profiles.Profile | None:
        """What the profile says."""
        return None if self.profile is None else profiles.profile(self.profile)

    @property
    def used_threads(self) -> int:
        """Of every model."""
        return self.threads or (self.device.threads if self.device else 1)


class Report(Closed):
    title: str | None = None
    disagreements: Annotated[int, Field(ge=0)] = 12
    """Rows shown where teacher and deployed student differ most."""
    answers: Annotated[int, Field(ge=0)] = 12
    """Of texts: rows shown with the answers of teacher and student side by side."""
