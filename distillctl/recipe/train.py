"""The losses, and the section about training."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from distillctl.recipe.base import Count, Fraction, Positive, Section, Seed, Spec


class LossTerm(Spec):
    """The common settings of all terms of the training loss."""

    squared_temperature: ClassVar[bool] = True
    """Whether the term is multiplied by T², which keeps gradients of one size (Hinton et al. 2015, section 2)."""
    needs_distribution: ClassVar[bool] = True
    """False if drawn tokens or the response are enough."""

    kind: str
    weight: Positive = 1.0
    """Weight of the term in the sum."""
    temperature: Positive = 1.0
    """Temperature T of both distributions. The KL family is multiplied by T² (Hinton et al. 2015)."""

    @property
    def options(self) -> dict[str, float]:
        """Return the loss function's further arguments."""
        return {}


class ForwardKL(LossTerm):
    """KL(P ‖ Q) of the teacher's P and the student's Q: covers all that the teacher finds likely."""

    target: ClassVar[str] = "distillctl.losses.divergences:forward_kl"
    kind: Literal["forward_kl"] = "forward_kl"


class ReverseKL(LossTerm):
    """KL(Q ‖ P): avoids what the teacher finds unlikely."""

    target: ClassVar[str] = "distillctl.losses.divergences:reverse_kl"
    kind: Literal["reverse_kl"] = "reverse_kl"


class JSD(LossTerm):
    """Jensen–Shannon divergence: β KL(P ‖ M) + (1−β) KL(Q ‖ M), with M = βP + (1−β)Q."""

    target: ClassVar[str] = "distillctl.losses.divergences:jsd"
    kind: Literal["jsd"] = "jsd"
    beta: float = 0.5
    """β, between 0 and 1 without the ends, where the divergence vanishes."""

    @property
    def options(self) -> dict[str, float]:
        """Return the arguments of the divergence."""
        return {"beta": self.beta}

    @model_validator(mode="after")
    def _open_interval(self) -> JSD:
        if not 0 < self.beta < 1:
            raise ValueError("beta must be inside (0, 1): at the ends jsd vanishes; use forward_kl or reverse_kl")
        return self


class SkewKL(LossTerm):
    """KL(P ‖ αP + (1−α)Q), which stays finite (Ko et al. 2024, "DistiLLM")."""

    target: ClassVar[str] = "distillctl.losses.divergences:skew_kl"
    kind: Literal["skew_kl"] = "skew_kl"
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """α: how much of the teacher is mixed into the student's distribution."""

    @property
    def options(self) -> dict[str, float]:
        """Return the arguments of the divergence."""
        return {"alpha": self.alpha}


class TVD(LossTerm):
    """Total variation distance, ½ Σ|P − Q| (Wen et al. 2023)."""

    target: ClassVar[str] = "distillctl.losses.divergences:tvd"
    squared_temperature: ClassVar[bool] = False
    kind: Literal["tvd"] = "tvd"


class CrossEntropy(LossTerm):
    """Cross-entropy on the teacher's top label, or on its response (sequence-level distillation, Kim & Rush 2016)."""

    target: ClassVar[str] = "distillctl.losses.divergences:cross_entropy"
    squared_temperature: ClassVar[bool] = False
    needs_distribution: ClassVar[bool] = False
    kind: Literal["cross_entropy"] = "cross_entropy"


class ULD(LossTerm):
    """L1 distance of the sorted probabilities, for tokenizers that differ (Boizard et al. 2024)."""

    target: ClassVar[str] = "distillctl.losses.cross_tokenizer:uld"
    squared_temperature: ClassVar[bool] = False
    kind: Literal["uld"] = "uld"


Loss = Annotated[ForwardKL | ReverseKL | JSD | SkewKL | TVD | CrossEntropy | ULD, Field(discriminator="kind")]


class Train(Section):
    """The student's training."""

    seed: Annotated[Seed | None, Field(examples=[1])] = None
    """Seed of training alone, for another student from the same soft labels. Without it, the recipe's `seed`."""
    loss: Annotated[tuple[Loss, ...], Field(min_length=1)] = (ForwardKL(),)
    """The terms of the loss; their weighted sum is minimised."""
    weights: Annotated[Literal["context_kl", "entropy"] | None, Field(examples=["context_kl"])] = None
    """For `generate`: what makes a response token count more in the loss. `context_kl`: how far the context changes the
    teacher's probabilities there, which collect then measures on the train rows, too; `entropy`: how uncertain the
    teacher is. Without it, all tokens count the same."""
    epochs: Count = 4
    """Maximal number of passes through the train rows."""
    batch_rows: Count = 32
    """Maximal number of rows in a batch."""
    batch_tokens: Count = 4096
    """Maximal number of tokens in a batch, padding included."""
    accumulate: Count = 1
    """Batches per optimizer step."""
    learning_rate: Positive = 2e-4
    """Learning rate of AdamW, after warm-up."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after warm-up."""
    warmup: Fraction = 0.1
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay of AdamW."""
    clip_norm: Positive = 1.0
    """Gradients with a larger norm are scaled down to this one."""
    mixed_precision: Literal["no", "bf16", "auto"] = "no"
    """`bf16` computes in bfloat16 where that is safe. `auto` does so if the GPU or the processor has instructions for
    it (AVX-512 BF16, AMX); on processors without them, `bf16` is slower than `no`."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the train rows held out for early stopping. Training never looks at the eval split."""
    evaluate_every: Annotated[Count | None, Field(examples=[50])] = None
    """Steps between two measurements of the held-out KL. Without it, half an epoch."""
    patience: Count = 4
    """Stop after this many measurements without a better held-out KL. The best weights are kept."""
    checkpoint_every: Count = 100
    """Steps between two checkpoints; a killed run repeats at most this many."""
    control: bool = False
    """Also train the same student on the teacher's hard labels, to show the benefit of soft labels."""
    threads: Annotated[Count | None, Field(examples=[4])] = None
    """Processor threads of training. Without it, torch's own choice."""

    def held_out(self, rows: int) -> int:
        """Return how many of ``rows`` train rows are held out for early stopping, at least one."""
        return max(1, round(self.validation * rows))
