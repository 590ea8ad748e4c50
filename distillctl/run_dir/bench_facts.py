"""The facts that bench records: latency, memory and size of each model."""

from __future__ import annotations

from distillctl.run_dir.facts import Facts, StageFacts


class RuntimeFacts(Facts):
    """The runtime of a model."""

    runtime: str
    dtype: str
    """The weights' type, or the quantizer that made them."""
    threads: int


class TimedModel(RuntimeFacts):
    """One model's figures over the timed queries of all its processes."""

    bytes: int
    """Bytes of the graphs with external data; for PyTorch's teacher, of its weights as loaded."""
    bytes_of: str
    """The place where ``bytes`` were counted: "file" or "memory"."""
    file_bytes: int | None = None
    """Bytes of the file of PyTorch's teacher."""
    cached_tokens: int | None = None
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float | None = None
    queries_per_second: float | None = None
    n: int
    processes: int | None = None
    process_p50_ms: list[float] = []
    """The least and the largest median of a process."""
    first_ms: float | None = None
    import_ms: float | None = None
    load_ms: float
    warmup_ratio: float | None = None
    """Median of the untimed queries after the first over the median of the timed ones; None without any."""
    waiting_share: float | None = None
    """Share of its queries' time in which it waited for a processor: 1 − processor time of all threads / time. With
    several threads it can be 0 on a busy machine. Older versions did not measure it."""
    peak_rss_bytes: int
    anonymous_bytes: int | None = None
    mapped_bytes: int | None = None
    first_token_ms: float | None = None
    """This and the next ones: only for a generating model. Speeds are all tokens over all their time."""
    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    """After the first token; None where no answer has a second one."""
    token_p50_ms: float | None = None
    token_p90_ms: float | None = None
    token_p99_ms: float | None = None
    kv_bytes: int | None = None
    view_tokens: float | None = None
    """Mean of what was run before the first token."""
    answer_tokens: float | None = None
    bytes_per_token: float | None = None
    """Weights, keys and values that it reads for a token."""
    tokens_per_run: float | None = None
    """Tokens that a run of the graph adds to the answer: more than 1 where guesses were right (`runtimes.drafts`)."""
    bandwidth_share: float | None = None
    """Share of the memory's bandwidth that it uses while it decodes."""


class MachineFacts(Facts):
    """The machine of a measurement (`runtimes.machine.describe`); None for what is unknown."""

    cpu: str | None = None
    architecture: str | None = None
    cores: int | None = None
    usable_cores: int | None = None
    flags: list[str] = []
    max_mhz: float | None = None
    governor: str | None = None
    memory_bytes: int | None = None
    load_average: float | None = None
    os: str | None = None


class HeadlinePeer(RuntimeFacts):
    """The teacher that the headline compares with. ratio: its median query over the deployed model's; agreement: the
    share of its timed queries answered as collect's teacher did."""

    model: str
    name: str
    ratio: float
    agreement: float | None


class LengthTimes(Facts):
    """The deployed graph on texts of one length; what it refuses has an error in place of times."""

    tokens: int
    p50_ms: float | None = None
    n: int | None = None
    error: str | None = None


class ProfileTimes(Facts):
    """The deployed graph within a device profile's limits, on this host."""

    name: str
    about: str
    host: str
    lengths: list[LengthTimes]


class SustainedTimes(Facts):
    """The first and the last part of a long run. ratio: last over first."""

    seconds: float
    queries: int
    part_seconds: float
    first_p50_ms: float
    last_p50_ms: float
    ratio: float


class BatchTimes(Facts):
    """The deployed graph's speed one text at a time, and with ``batch`` texts decoded together. ratio: of the two."""

    batch: int
    texts: int
    texts_per_second: float
    texts_per_second_together: float
    ratio: float
    same_answers: float
    """Share of the texts with the same answer both ways."""


class LoadgenFacts(Facts):
    """MLPerf LoadGen's result on the deployed graph."""

    valid: bool
    unmet: list[str]
    """Its rules that were not kept."""
    queries: int
    seconds: float
    p50_ms: float | None = None
    p90_ms: float | None
    p99_ms: float | None = None
    mean_ms: float | None = None
    first_token_p90_ms: float | None
    """Only for a generating model."""
    early_stopping_p90_ms: float | None = None
    """The p90 that LoadGen vouches for; None where it vouches for none."""


class AlsoMeasured(Facts):
    """The measurements that only some runs make."""

    headline_peer: HeadlinePeer | None = None
    """None for a served teacher, which is not timed."""
    memory_bytes_per_second: int | None = None
    profile: ProfileTimes | None = None
    sustained: SustainedTimes | None = None
    together: BatchTimes | None = None
    loadgen: LoadgenFacts | None = None


class BenchFacts(AlsoMeasured, StageFacts):
    """The facts that bench records."""

    models: dict[str, TimedModel]
    machine: MachineFacts
    threads: int
    cpus: list[int] = []
    ratios: dict[str, float]
    """Model → its median query over the deployed model's."""
    agreement: dict[str, float | None]
    """Model → share of its timed queries with the answer on record."""
