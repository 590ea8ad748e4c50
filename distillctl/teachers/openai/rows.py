"""Turn rows into requests, and answers into labels or texts."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distillctl import cautions, console
from distillctl.data.responses import Response
from distillctl.data.views import CEILING
from distillctl.errors import UnavailableError
from distillctl.models.model_source import ServedSource
from distillctl.recipe import Generate, OpenAITeacher, Sampling, Task, TopK
from distillctl.run_dir.facts import AskedFacts, Facts, RequestTimes, ServerTokens
from distillctl.teachers.openai import labels, server_capabilities, texts
from distillctl.teachers.openai.client import Client, RequestFailed
from distillctl.teachers.openai.in_place import LabelsInPlace, Sent
from distillctl.teachers.openai.protocol import Answer, Position, Request
from distillctl.teachers.openai.reading import ServedReader, prompt
from distillctl.teachers.openai.request_scheduler import RequestScheduler
from distillctl.teachers.openai.response_cache import ResponseCache
from distillctl.teachers.openai.server_capabilities import ServerCapabilities
from distillctl.teachers.worker_pool import ShardTask

ANSWERS, GRANTS = "answers.jsonl", "grants.json"
_LARGEST_SEED = 2**31
_DRAWS = 8


@dataclass(frozen=True)
class Served:
    """A teacher behind a server. folder: where its answers are cached. again: the command that continues."""

    spec: OpenAITeacher
    source: ServedSource
    task: Task
    folder: Path
    again: str


async def open_rows(served: Served, reader: ServedReader) -> ShardRequests:
    """Connect to the server and find its capabilities. Raise UnavailableError if it cannot do what is needed."""
    spec, task = served.spec, served.task
    client = Client(spec)
    scheduler = RequestScheduler(spec, client, ResponseCache(served.folder / ANSWERS), served.again)
    drawn = task.responses if isinstance(task, Generate) and isinstance(task.responses, Sampling) else None
    logprobs = not isinstance(task, Generate) or isinstance(task.soft_labels, TopK)
    path = served.folder / GRANTS
    temperature = drawn.temperature if drawn and logprobs else 1.0
    wanted = server_capabilities.Wanted(logprobs, drawn is not None and drawn.n > 1, temperature)
    capabilities = server_capabilities.read(path, wanted.key(spec))
    if capabilities is None:
        try:
            capabilities = await server_capabilities.ask(scheduler, wanted)
        except BaseException:
            await client.close()
            scheduler.cache.close()
            raise
        server_capabilities.write(path, capabilities)
    console.note(capabilities.describe(spec))
    scheduler.expected_model = capabilities.model
    if logprobs and not capabilities.top_logprobs:
        raise UnavailableError(
            f"{spec.base_url} gives no log-probabilities for {spec.model}",
            where="teacher",
            next="use another API or server (llama-cpp-python needs --logits_all true); or, for generate, "
            "task.soft_labels: {kind: text}",
        )
    if not capabilities.untempered:
        raise UnavailableError(
            f"{spec.base_url} applies the temperature to log-probabilities, so the original ones cannot be computed",
            where="task.responses.temperature",
            next="use temperature 1, responses: {kind: greedy}, or soft_labels: {kind: text}",
        )
    if isinstance(task, Generate):
        return _GenerationRequests(served, reader, scheduler, capabilities)
    return _LabelScoringRequests(served, reader, scheduler, capabilities)


class ShardRequests:
    """Answer shards by requests. Subclasses send one row's requests in ``_row``."""

    def __init__(
        self, served: Served, reader: ServedReader, scheduler: RequestScheduler, capabilities: ServerCapabilities
    ) -> None:
        self.spec, self.task, self.reader = served.spec, served.task, reader
        self.scheduler, self.capabilities = scheduler, capabilities
        self.fingerprints: Counter[str] = Counter()
        self._probes: dict[str, asyncio.Task[int]] = {}
        self._prepare()

    def _prepare(self) -> None:
        """Load what rows need, before any request is sent."""

    async def shard(self, task: ShardTask) -> list[Any]:
        """Return an answer or an exception for each row."""
        rows = (self._row(task, place) for place in range(len(task.rows)))
        return await asyncio.gather(*rows, return_exceptions=True)

    def joined(self, task: ShardTask, answers: list[Any]) -> Any:
        """Combine all rows' answers for the stage."""
        raise NotImplementedError

    async def _row(self, task: ShardTask, place: int) -> Any:
        raise NotImplementedError

    async def _ask(self, request: Request) -> Answer:
        answer = await self.scheduler.ask(request)
        if answer.usage is not None and answer.usage[0]:
            self.reader.counted(request.characters, answer.usage[0])
        if answer.system_fingerprint:
            self.fingerprints[answer.system_fingerprint] += 1
        return answer

    def _request(self, text: str, max_tokens: int, top_logprobs: int) -> Request:
        return Request(
            self.spec.api,
            self.spec.model,
            prompt(text),
            max_tokens,
            top_logprobs,
            seed=self.spec.seed,
            limit_key=self.capabilities.limit_key,
            extra=self.spec.further_keys,
        )

    def doubts(self) -> None:
        """Add cautions about the server and its answers."""
        spec, uncounted = self.spec, self.scheduler.uncounted
        limits = [name for name in ("max_cost", "max_tokens_total") if getattr(spec, name) is not None]
        if uncounted and limits:
            cautions.add(
                "tokens-not-counted",
                f"The server does not say how many tokens it read for {uncounted:,} answers (its usage is 0 or "
                f"missing). teacher.{' and '.join(limits)} is enforced with estimates from the length of the texts.",
            )

    def facts(self) -> AskedFacts:
        """Return what the server can do, and what it was asked."""
        scheduler = self.scheduler
        read, written = scheduler.budget.used
        times = scheduler.cache.milliseconds
        quantiles = np.percentile(times, [50, 90, 99]).round(1).tolist() if times else [None] * 3
        return AskedFacts(
            granted=Facts(**self.capabilities.model_dump(mode="json", exclude={"asked"})),
            system_fingerprints=dict(self.fingerprints),
            requests=scheduler.sent,
            kept_answers=scheduler.reused,
            faults=dict(scheduler.failures),
            tokens=ServerTokens(read=read, written=written),
            cost=scheduler.budget.cost(scheduler.budget.used),
            request_ms=RequestTimes(**dict(zip(("p50", "p90", "p99"), quantiles, strict=True)), n=len(times)),
            concurrency=self.spec.concurrency,
        )


@dataclass(frozen=True)
class Labelled:
    """Labels of a shard.

    log_probs: float32 [N, K], natural logs, not normalised over labels. seen: bool [N, K], False for upper bounds.
    mass: float32 [N], Σ Pr over the labels seen. tokens: number of tokens of the views.
    """

    log_probs: np.ndarray
    mass: np.ndarray
    tokens: int
    seen: np.ndarray
    next_tokens: list[str] | None = None
    next_log_probs: np.ndarray | None = None
    """As in `teachers.label_scoring.LabelScores`."""


@dataclass(frozen=True)
class _RowLabels:
    """A row's label scores, and the likeliest token after its view with its log-probability."""

    scores: labels.RowScores
    next: tuple[bytes, float]


class _LabelScoringRequests(ShardRequests):
    """Request labels.

    If a row's likeliest label is not among the tokens shown, request more of the likeliest tokens, or the
    log-probabilities of the labels' own tokens in a prompt, whichever the server supports.
    """

    def _prepare(self) -> None:
        self._labels = LabelsInPlace(self.task.answers, self.reader.known, self.spec.api)

    async def _row(self, task: ShardTask, place: int) -> _RowLabels:
        sent = self._labels.after(task.views.texts[place], task.views.prefix.place)
        begun, likeliest = await self._shown(sent, self.capabilities.top_logprobs)
        scores = labels.scores(begun)
        if not scores.measured and (more := await self._probed("more", server_capabilities.more)):
            begun, _ = await self._shown(sent, more)
            scores = labels.scores(begun)
        wanting = not scores.measured or not all(label.asked for label in begun)
        if wanting and await self._probed("echo", server_capabilities.echoes):
            pairs = zip(sent.labels, begun, strict=True)
            begun = [await self._echoed(sent.text, label, shown) for label, shown in pairs]
            scores = labels.scores(begun)
        return _RowLabels(scores, likeliest)

    async def _probed(self, name: str, probe: Callable[[RequestScheduler, ServerCapabilities], Awaitable[int]]) -> int:
        """Return the result of a probe of the server, which is sent when a row first needs it."""
        if name not in self._probes:
            self._probes[name] = asyncio.ensure_future(probe(self.scheduler, self.capabilities))
        return await asyncio.shield(self._probes[name])

    async def _shown(self, sent: Sent, top_logprobs: int) -> tuple[list[labels.Begun], tuple[bytes, float]]:
        """Score the labels by the likeliest tokens; return also the likeliest token."""
        seen: dict[labels.Path, Position | None] = {}

        async def following(path: labels.Path) -> Position | None:
            if path not in seen and not self._labels.can_ask(sent, path):
                seen[path] = None
            elif path not in seen:
                text = sent.text + b"".join(path).decode()
                seen[path] = await self._next(self._request(text, 1, top_logprobs))
            return seen[path]

        begun = await labels.begun(sent.labels, following, first_only=self.spec.api == "chat")
        first = await following(())
        assert first is not None
        return begun, first.top[0]

    async def _next(self, request: Request) -> Position:
        """Return the likeliest tokens after a text.

        If the model would end there, most servers show nothing. Another request then draws a token; which one is drawn
        does not affect the probabilities.
        """
        for seed in range(_DRAWS + 1):
            drawn = replace(request, temperature=1.0, seed=seed) if seed else request
            positions = (await self._ask(drawn)).choices[0].positions
            if positions and positions[0].top:
                return Position(positions[0].token, positions[0].top[: request.top_logprobs])
        raise RequestFailed(
            "ended at once", "the model answers nothing, and the server then shows no token", again=False
        )

    async def _echoed(self, text: str, label: labels.Label, shown: labels.Begun) -> labels.Begun:
        """Score an unseen label by its tokens' log-probabilities in a prompt; leave it unseen if the server gives
        none."""
        if shown.seen:
            return shown
        request = replace(self._request(text + label.words.decode(), 1, 1), echo=len(label.words))
        positions = (await self._ask(request)).choices[0].positions
        path = tuple(position.token for position in positions)
        if not path or (label.tokens is not None and path != label.tokens):
            return shown
        return labels.Begun(math.fsum(position.top[0][1] for position in positions), True, path)

    def joined(self, task: ShardTask, answers: list[_RowLabels]) -> Labelled:
        return Labelled(
            np.stack([row.scores.log_probs for row in answers]),
            np.array([row.scores.mass for row in answers], np.float32),
            sum(self.reader.tokens(text) for text in task.views.texts),
            np.stack([row.scores.seen for row in answers]),
            [row.next[0].decode(errors="replace") for row in answers],
            np.array([row.next[1] for row in answers], np.float32),
        )


class _GenerationRequests(ShardRequests):
    """Request responses."""

    def _prepare(self) -> None:
        assert isinstance(self.task, Generate)
        self._settings, self._ends = self.task, self.reader.stop_ids(self.task.stop)

    async def _row(self, task: ShardTask, place: int) -> list[Response]:
        known = self.reader.known
        if task.given is not None:
            assert known is not None
            return [texts.given(task.given[place], self._settings, known, self._ends)]
        keep = task.arm == CEILING and isinstance(self._settings.soft_labels, TopK)
        base = self._request(
            task.views.texts[place], self._settings.max_new_tokens, self.capabilities.top_logprobs if keep else 0
        )
        choices = [
            choice for request in self._requests(base, task, place) for choice in (await self._ask(request)).choices
        ]
        try:
            return [texts.response(choice, self._settings, known, self._ends) for choice in choices]
        except texts.Unknown as error:
            raise RequestFailed("unknown token", self.scheduler.client.shown(str(error)), again=False) from None

    def _requests(self, base: Request, task: ShardTask, place: int) -> list[Request]:
        """Return the requests for one row: one for all samples if the server supports it."""
        base = replace(base, stop=self._settings.stop)
        sampling = self._settings.responses
        if task.split != "train" or not isinstance(sampling, Sampling):
            return [base]
        drawn = replace(base, temperature=sampling.temperature, top_p=sampling.top_p)
        seeds = [(task.seeds[place] + sample) % _LARGEST_SEED for sample in range(sampling.n)]
        if self.capabilities.samples:
            return [replace(drawn, n=sampling.n, seed=seeds[0])]
        return [replace(drawn, seed=seed) for seed in seeds]

    def joined(self, task: ShardTask, answers: list[list[Response]]) -> list[tuple[str, int, Response]]:
        return [
            (row, sample, response)
            for row, several in zip(task.rows, answers, strict=True)
            for sample, response in enumerate(several)
        ]
