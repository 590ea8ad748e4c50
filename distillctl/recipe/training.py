"""The losses and the training run."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from distillctl.recipe.base import Closed, Count, Fraction, Positive, Seed, Spec


class LossTerm(Spec):
    squared_temperature: ClassVar[bool] = True
    """Whether the term is multiplied by T², which keeps gradients of one size (Hinton et al. 2015, section 2)."""
    needs_distribution: ClassVar[bool] = True
    """False where drawn tokens or the response alone are enough."""

    kind: str
    weight: Positive = 1.0
    temperature: Positive = 1.0
    """Applied to both sides; the KL family is multiplied by T² (Hinton et al. 2015)."""

    @property
    def options(self) -> dict[str, float]:
        """The loss function's further arguments."""
        return {}


class ForwardKL(LossTerm):
    target: ClassVar[str] = "distillctl.losses.divergences:forward_kl"
    kind: Literal["forward_kl"] = "forward_kl"


class ReverseKL(LossTerm):
    target: ClassVar[str] = "distillctl.losses.divergences:reverse_kl"
    kind: Literal["reverse_kl"] = "reverse_kl"


class JSD(LossTerm):
    target: ClassVar[str] = "distillctl.losses.divergences:jsd"
    kind: Literal["jsd"] = "jsd"
    beta: float = 0.5

    @property
    def options(self) -> dict[str, float]:
        return {"beta": self.beta}

    @model_validator(mode="after")
    def _open_interval(self) -> JSD:
        if not 0 < self.beta < 1:
            raise ValueError("beta must be inside (0, 1): at the ends jsd vanishes; use forward_kl or reverse_kl")
        return self


class SkewKL(LossTerm):
    """KL(P ‖ αP + (1−α)Q) (Ko et al. 2024, "DistiLLM")."""

    target: ClassVar[str] = "distillctl.losses.divergences:skew_kl"
    kind: Literal["skew_kl"] = "skew_kl"
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1

    @property
    def options(self) -> dict[str, float]:
        return {"alpha": self.alpha}


class TVD(LossTerm):
    """½ Σ|P − Q| (Wen et al. 2023)."""

    target: ClassVar[str] = "distillctl.losses.divergences:tvd"
    squared_temperature: ClassVar[bool] = False
    kind: Literal["tvd"] = "tvd"


class CrossEntropy(LossTerm):
    """On the teacher's own top label, or its own response (sequence-level, Kim & Rush 2016)."""

    target: ClassVar[str] = "distillctl.losses.divergences:cross_entropy"
    squared_temperature: ClassVar[bool] = False
    needs_distribution: ClassVar[bool] = False
    kind: Literal["cross_entropy"] = "cross_entropy"


class ULD(LossTerm):
    """L1 between the sorted probabilities: for tokenizers that differ (Boizard et al. 2024)."""

    target: ClassVar[str] = "distillctl.losses.cross_tokenizer:uld"
    squared_temperature: ClassVar[bool] = False
    kind: Literal["uld"] = "uld"


Loss = Annotated[ForwardKL | ReverseKL | JSD | SkewKL | TVD | CrossEntropy | ULD, Field(discriminator="kind")]


class Train(Closed):
    seed: Seed | None = None
    """Of training alone, to train anew on what was collected; the recipe's when it is left out."""
    loss: Annotated[tuple[Loss, ...], Field(min_length=1)] = (ForwardKL(),)
    epochs: Count = 4
    batch_rows: Count = 32
    batch_tokens: Count = 4096
    """Padded tokens of one batch at most."""
    accumulate: Count = 1
    """Batches per optimizer step."""
    learning_rate: Positive = 2e-4
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Fraction = 0.1
    """Share of the steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Positive = 1.0
    mixed_precision: Literal["no", "bf16"] = "no"
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the train rows held out for early stopping; the eval split is never looked at."""
    evaluate_every: Count | None = None
    """Steps between looks at the held-out KL (default: half an epoch)."""
    patience: Count = 4
    """Stop after so many looks without a better held-out KL; the best weights are kept."""
    checkpoint_every: Count = 100
    """Steps."""
    control: bool = False
    """Also train the same student on the teacher's hard labels."""
    threads: Count | None = None

    def held_out(self, rows: int) -> int:
        """How many of so many train rows are held out for early stopping; at least one."""
        return max(1, round(self.validation * rows))
