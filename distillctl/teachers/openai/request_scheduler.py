"""Send requests: reuse cached answers, limit concurrency and rate, retry after failures, and keep within the budget."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

from distillctl.errors import UnavailableError
from distillctl.recipe import OpenAITeacher
from distillctl.run_dir.workspace import digest
from distillctl.teachers.openai.client import IMPOSSIBLE, Client, RequestFailed
from distillctl.teachers.openai.limits import Budget, BudgetExceeded, RateLimiter, Tokens
from distillctl.teachers.openai.protocol import Answer, Request
from distillctl.teachers.openai.response_cache import ResponseCache

LONGEST_WAIT = 60.0
"""Most seconds between two tries of a request, unless the server asks for more."""
LONGEST_PAUSE = 600.0
"""Most seconds of Retry-After to wait. A server that asks for more counts as unavailable."""
HOPELESS = 16
"""Requests in a row that failed for good, after which the server counts as unavailable."""
CHARACTERS_PER_TOKEN, FRAME = 3.0, 16
"""For a high estimate of a request's tokens before it is sent, including the chat template."""


class Stopped(Exception):
    """No further request is sent. The reason is an error for the user."""

    def __init__(self, reason: UnavailableError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class RequestScheduler:
    """Send all requests of a run. A request that is already open is not sent a second time."""

    def __init__(self, spec: OpenAITeacher, client: Client, cache: ResponseCache, again: str) -> None:
        """again: the command that continues after a stop."""
        self.spec, self.client, self.cache, self._again = spec, client, cache, again
        self.budget = Budget(spec, cache.used)
        self.rate_limiter = RateLimiter(spec.requests_per_minute, spec.tokens_per_minute)
        self.failures: Counter[str] = Counter()
        """Failures by kind, retried or not."""
        self.sent = self.reused = self.uncounted = 0
        """uncounted: answers whose tokens the server does not count, and which are estimated."""
        self.expected_model: str | None = None
        """The model's name as the server states it. An answer from another model is refused."""
        self._slots = asyncio.Semaphore(spec.concurrency)
        self._under_way: dict[str, asyncio.Task[Answer]] = {}
        self._stopped: UnavailableError | None = None
        self._halted = asyncio.Event()
        self._failed_in_a_row = 0

    async def ask(self, request: Request, *, retries: int | None = None) -> Answer:
        """Return the answer, from the cache if possible.

        Raise RequestFailed if this request fails, and Stopped if no request is sent any more.
        """
        key = digest([self.spec.base_url, request.api, request.body])
        if (kept := self.cache.get(key)) is not None:
            self.reused += 1
            return kept
        if key not in self._under_way:
            tries = 1 + (self.spec.max_retries if retries is None else retries)
            task = asyncio.create_task(self._until_answered(key, request, tries))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return await asyncio.shield(self._under_way[key])

    def stop(self, reason: UnavailableError) -> Stopped:
        """Send nothing from now on; wait for open requests."""
        self._stopped = self._stopped or reason
        self._halted.set()
        return Stopped(self._stopped)

    # ── one request ─────────────────────────────────────────────────────────────────────────────

    async def _until_answered(self, key: str, request: Request, tries: int) -> Answer:
        async with self._slots:
            for left in reversed(range(tries)):
                try:
                    answer = await self._once(key, request)
                except RequestFailed as failure:
                    self.failures[failure.kind] += 1
                    if failure.fatal:
                        raise self.stop(self._refused(failure)) from failure
                    if not left or not failure.again or (failure.after or 0) > LONGEST_PAUSE:
                        self._give_up(failure)
                        raise
                    await self._sleep(self._wait(failure, tries - 1 - left))
                else:
                    self._failed_in_a_row = 0
                    return answer
        raise AssertionError("tries is at least 1")

    async def _once(self, key: str, request: Request) -> Answer:
        most = estimate(request)
        await self._turn(most)
        used, start = (0, 0), time.perf_counter()
        try:
            self.sent += 1
            answer = await self.client.send(request)
            used = self._used(answer, most)
            self._check_model(answer)
        except RequestFailed as failure:
            if failure.paid:
                used = used if any(used) else most
                self.cache.lose(key, used)
            raise
        else:
            self.cache.keep(key, answer, used, 1000 * (time.perf_counter() - start))
            return answer
        finally:
            self.budget.charge(most, used)
            self.rate_limiter.correct(sum(most), sum(used))

    def _used(self, answer: Answer, most: Tokens) -> Tokens:
        """Return tokens read and written, counted by the server or estimated, at least one each."""
        read, written = answer.usage or (0, 0)
        self.uncounted += not read
        return read or most[0], written or _written(answer)

    async def _turn(self, most: Tokens) -> None:
        """Wait until the request may be sent. Raise Stopped if none may."""
        self._check_stopped()
        try:
            self.budget.reserve(most)
        except BudgetExceeded as reason:
            raise self.stop(
                UnavailableError(
                    f"stopped by teacher.{reason}; the answers so far are kept",
                    next=f"raise the limit and continue with: {self._again}",
                )
            ) from None
        try:
            await self.rate_limiter.turn(sum(most), self._sleep)
            self._check_stopped()
        except BaseException:
            self.budget.charge(most, (0, 0))
            raise

    async def _sleep(self, seconds: float) -> None:
        """Raise Stopped as soon as no request is sent any more."""
        try:
            async with asyncio.timeout(seconds):
                await self._halted.wait()
        except TimeoutError:
            return
        self._check_stopped()

    def _check_stopped(self) -> None:
        if self._stopped is not None:
            raise Stopped(self._stopped)

    def _check_model(self, answer: Answer) -> None:
        if None not in (self.expected_model, answer.model) and answer.model != self.expected_model:
            raise RequestFailed(
                "another model", f"{answer.model!r} answered instead of {self.expected_model!r}", paid=True
            )

    def _wait(self, failure: RequestFailed, retry: int) -> float:
        """Return the seconds to wait before the next try."""
        backoff = min(self.spec.backoff_seconds * 2.0**retry, LONGEST_WAIT) * random.uniform(0.75, 1.0)
        if failure.after is None:
            return backoff
        if failure.kind == "HTTP 429":  # the limit applies to the key, not to the request
            self.rate_limiter.close(failure.after, time.monotonic())
        return max(failure.after, backoff)

    def _give_up(self, failure: RequestFailed) -> None:
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= max(HOPELESS, 2 * self.spec.concurrency):
            self.stop(
                UnavailableError(
                    f"{self._failed_in_a_row} requests in a row were given up, the last one after {failure}",
                    where=self.spec.base_url,
                    next=f"check the server, then continue with: {self._again}",
                )
            )

    def _refused(self, failure: RequestFailed) -> UnavailableError:
        """Return the user's error for a failure that affects all requests."""
        key = self.spec.api_key_env
        if failure.kind == IMPOSSIBLE:
            return UnavailableError(
                f"the server's log-probabilities cannot be used: {failure.detail}",
                where=self.spec.base_url,
                next="check what it calls logprobs: they must be natural logarithms over the whole vocabulary; "
                f"then {self._again}",
            )
        if failure.kind == "redirect":
            return UnavailableError(
                f"the server sends requests on to {failure.detail}; nothing was sent there",
                where=self.spec.base_url,
                next=f"if you trust that address, name it as teacher.base_url; then {self._again}",
            )
        remedy = {
            "HTTP 401": f"set {key} to a key of this server"
            if key
            else "name the variable of its key: teacher.api_key_env",
            "HTTP 403": f"ask for access to {self.spec.model}, or use another key",
            "HTTP 404": f"check that {self.spec.base_url}/models lists {self.spec.model}, and check teacher.api",
        }.get(failure.kind, "check the account's credit")
        return UnavailableError(
            f"the server refuses: {failure}", where=self.spec.base_url, next=f"{remedy}; then {self._again}"
        )


def estimate(request: Request) -> Tokens:
    """Return an upper bound of a request's tokens, from its length."""
    frame = FRAME * (1 if isinstance(request.prompt, str) else len(request.prompt))
    return round(request.characters / CHARACTERS_PER_TOKEN) + frame, request.n * request.max_tokens


def _written(answer: Answer) -> int:
    """Estimate the tokens of an answer that the server does not count."""
    return sum(len(choice.positions) or 1 + round(len(choice.text) / CHARACTERS_PER_TOKEN) for choice in answer.choices)
