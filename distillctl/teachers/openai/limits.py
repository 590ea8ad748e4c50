"""How fast a server may be asked, and how much may be spent on it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from distillctl.recipe import OpenAITeacher

Tokens = tuple[int, int]
"""Read and written."""


class BudgetExceeded(Exception):
    """The next request might go beyond the budget."""


@dataclass
class Budget:
    """What was used so far in tokens and money, and what requests under way may still use."""

    spec: OpenAITeacher
    used: Tokens = (0, 0)
    held: Tokens = (0, 0)

    def cost(self, tokens: Tokens) -> float | None:
        """In the currency of the recipe's prices; None without any."""
        prices = self.spec.prices
        return None if prices is None else (tokens[0] * prices.input + tokens[1] * prices.output) / 1e6

    def hold(self, most: Tokens) -> None:
        """Before a request: set its tokens aside. BudgetExceeded when they might not be there."""
        after = _sum(self.used, self.held, most)
        limit = self.spec.max_tokens_total
        if limit is not None and sum(after) > limit:
            raise BudgetExceeded(f"max_tokens_total ({limit:,}): {sum(self.used):,} tokens are used")
        limit_cost, spent = self.spec.max_cost, self.cost(after)
        if limit_cost is not None and spent is not None and spent > limit_cost:
            raise BudgetExceeded(f"max_cost ({limit_cost:g}): {self.cost(self.used):.4g} is spent")
        self.held = _sum(self.held, most)

    def settle(self, most: Tokens, used: Tokens) -> None:
        """After it: what it used instead of what was set aside."""
        self.held = self.held[0] - most[0], self.held[1] - most[1]
        self.used = _sum(self.used, used)


@dataclass
class RateLimiter:
    """When the next request may go: evenly, so that no minute holds more than the recipe allows."""

    requests_per_minute: float | None
    tokens_per_minute: float | None
    _free: float = 0.0
    _closed: float = field(default=0.0)

    def reserve(self, tokens: int, now: float) -> float:
        """Seconds to wait before a request of so many tokens; its place is taken."""
        start = max(now, self._free, self._closed)
        gaps = [60 / self.requests_per_minute] if self.requests_per_minute else []
        gaps += [60 * tokens / self.tokens_per_minute] if self.tokens_per_minute else []
        self._free = max(start + max(gaps, default=0.0), self._free)
        return start - now

    def correct(self, estimated: int, used: int) -> None:
        """Give back, or take, the time of tokens that were estimated wrongly."""
        if self.tokens_per_minute:
            self._free += 60 * (used - estimated) / self.tokens_per_minute

    def close(self, seconds: float, now: float) -> None:
        """The server asks for a pause: nobody goes before it is over."""
        self._closed = max(self._closed, now + seconds)

    async def turn(self, tokens: int, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Wait for one's turn."""
        wait = self.reserve(tokens, time.monotonic())
        while wait > 0:
            await sleep(wait)
            wait = self._closed - time.monotonic()


def _sum(*parts: Tokens) -> Tokens:
    read, written = zip(*parts, strict=True)
    return sum(read), sum(written)
