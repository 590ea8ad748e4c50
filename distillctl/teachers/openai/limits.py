"""Limit the rate of requests to a server, and what they may cost."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from distillctl.recipe import OpenAITeacher

Tokens = tuple[int, int]
"""Tokens read and written."""


class BudgetExceeded(Exception):
    """The next request could exceed the budget."""


@dataclass
class Budget:
    """Tokens used so far, and tokens that open requests may still use, with their cost."""

    spec: OpenAITeacher
    used: Tokens = (0, 0)
    held: Tokens = (0, 0)

    def cost(self, tokens: Tokens) -> float | None:
        """Return the cost in the currency of the recipe's prices, or None without prices."""
        prices = self.spec.prices
        return None if prices is None else (tokens[0] * prices.input + tokens[1] * prices.output) / 1e6

    def reserve(self, most: Tokens) -> None:
        """Reserve the tokens of a request before it is sent. Raise BudgetExceeded if they could exceed the budget."""
        after = _sum(self.used, self.held, most)
        limit = self.spec.max_tokens_total
        if limit is not None and sum(after) > limit:
            raise BudgetExceeded(f"max_tokens_total ({limit:,}): {sum(self.used):,} tokens are used")
        limit_cost, spent = self.spec.max_cost, self.cost(after)
        if limit_cost is not None and spent is not None and spent > limit_cost:
            raise BudgetExceeded(f"max_cost ({limit_cost:g}): {self.cost(self.used):.4g} is spent")
        self.held = _sum(self.held, most)

    def charge(self, most: Tokens, used: Tokens) -> None:
        """Replace a request's reservation with what it used."""
        self.held = self.held[0] - most[0], self.held[1] - most[1]
        self.used = _sum(self.used, used)


@dataclass
class RateLimiter:
    """Space requests evenly, so that no minute exceeds the recipe's limits."""

    requests_per_minute: float | None
    tokens_per_minute: float | None
    _free: float = 0.0
    _closed: float = field(default=0.0)

    def reserve(self, tokens: int, now: float) -> float:
        """Reserve a place for a request of so many tokens. Return the seconds to wait."""
        start = max(now, self._free, self._closed)
        gaps = [60 / self.requests_per_minute] if self.requests_per_minute else []
        gaps += [60 * tokens / self.tokens_per_minute] if self.tokens_per_minute else []
        self._free = max(start + max(gaps, default=0.0), self._free)
        return start - now

    def correct(self, estimated: int, used: int) -> None:
        """Correct the reserved time when the number of tokens was estimated wrongly."""
        if self.tokens_per_minute:
            self._free += 60 * (used - estimated) / self.tokens_per_minute

    def close(self, seconds: float, now: float) -> None:
        """Send nothing for some seconds, because the server asked for a pause."""
        self._closed = max(self._closed, now + seconds)

    async def turn(self, tokens: int, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Wait until a request may be sent."""
        wait = self.reserve(tokens, time.monotonic())
        while wait > 0:
            await sleep(wait)
            wait = self._closed - time.monotonic()


def _sum(*parts: Tokens) -> Tokens:
    read, written = zip(*parts, strict=True)
    return sum(read), sum(written)
