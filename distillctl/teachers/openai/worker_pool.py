"""The worker pool for a teacher behind a server, which answers many rows at a time (`teacher.kind: openai`).

An answer is cached before it is used. A shard is yielded when all its rows are answered. Rows that failed are written
to failed.jsonl with the reason, and only they are asked again the next time.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distillctl import interrupts
from distillctl.errors import UnavailableError
from distillctl.run_dir.workspace import write_text
from distillctl.teachers.openai import rows
from distillctl.teachers.openai.client import RequestFailed
from distillctl.teachers.openai.reading import ServedReader
from distillctl.teachers.openai.request_scheduler import Stopped
from distillctl.teachers.openai.rows import Served, ShardRequests
from distillctl.teachers.worker_pool import Key, ShardTask

FAILED = "failed.jsonl"
_LOOK = 0.2
"""Seconds between two checks for a signal."""


@contextmanager
def open_pool(served: Served) -> Iterator[ServedWorkerPool]:
    """Yield the pool. The first task opens the connection. Raise UnavailableError after the block if rows failed."""
    pool = ServedWorkerPool(served)
    try:
        yield pool
        pool.finish()
    finally:
        pool.close()


class ServedWorkerPool:
    """A `WorkerPool` that sends as many requests at a time as the recipe allows, for rows of several shards."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self.reader = ServedReader(served.source)
        self._runner = asyncio.Runner()
        self._rows: ShardRequests | None = None
        self._asked = 0
        self._failed: list[dict[str, Any]] = []
        (served.folder / FAILED).unlink(missing_ok=True)

    def map(self, tasks: Iterable[tuple[Key, ShardTask]]) -> Iterator[tuple[Key, Any]]:
        """Yield each shard whose rows were all answered, in the order in which they finish."""
        waiting, under_way = iter(tasks), dict[asyncio.Task[Any], tuple[Key, ShardTask]]()
        more = True
        ended: BaseException | None = None
        while True:
            while more and sum(len(task.rows) for _, task in under_way.values()) <= self._served.spec.concurrency:
                following = next(waiting, None)
                if more := following is not None:
                    key, task = following
                    self._asked += len(task.rows)
                    under_way[self._runner.get_loop().create_task(self._open().shard(task))] = key, task
            if not under_way:
                break
            for done in self._runner.run(self._some(list(under_way))):
                key, task = under_way.pop(done)
                answers = done.result()
                end = self._end(task, answers)
                ended = ended or end
                if ended is not None:  # open requests are paid for: wait for their answers and keep them
                    more = False
                    self._open().scheduler.stop(UnavailableError(str(ended)))
                if not any(isinstance(answer, BaseException) for answer in answers):
                    yield key, self._open().joined(task, answers)
        if ended is not None:
            self._write_failed()
            raise ended

    def finish(self) -> None:
        """Show cautions. Raise UnavailableError if rows failed; they are listed in failed.jsonl."""
        if self._rows is not None:
            self._rows.doubts()
        if not self._failed:
            return
        path = self._write_failed()
        kinds = Counter(row["error"] for row in self._failed).most_common()
        summary = ", ".join(f"{count} × {kind}" for kind, count in kinds)
        raise UnavailableError(
            f"{len(self._failed):,} of {self._asked:,} rows could not be answered: {summary}",
            where=str(path),
            next=f"send these rows again (the others are kept): {self._served.again}",
        )

    def close(self) -> None:
        """Close the connections and the cache of answers."""
        if self._rows is not None:
            self._runner.run(self._rows.scheduler.client.close())
            self._rows.scheduler.cache.close()
        self._runner.close()

    # ── the event loop ───────────────────────────────────────────────────────────────────────────

    def _open(self) -> ShardRequests:
        """Connect on first use."""
        if self._rows is None:
            self._rows = self._runner.run(rows.open_rows(self._served, self.reader))
            self.reader.asked = self._rows.facts
        return self._rows

    async def _some(self, under_way: list[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
        """Wait until a shard is done. After a signal, send nothing more and wait for the open requests."""
        while True:
            done, _ = await asyncio.wait(under_way, timeout=_LOOK, return_when=asyncio.FIRST_COMPLETED)
            if interrupts.pending():
                self._open().scheduler.stop(UnavailableError("interrupted"))
                await asyncio.wait(under_way)
                interrupts.raise_if_pending()
            if done:
                return [task for task in under_way if task in done]

    def _end(self, task: ShardTask, answers: list[object]) -> BaseException | None:
        """Return the error that ends the work, if any. Rows that failed are recorded and do not end it."""
        for row, answer in zip(task.rows, answers, strict=True):
            if isinstance(answer, RequestFailed):
                where = {"id": row, "split": task.split, "context": task.arm}
                self._failed.append({**where, "error": answer.kind, "detail": answer.detail})
        stopped = [answer.reason for answer in answers if isinstance(answer, Stopped)]
        others = [
            answer
            for answer in answers
            if isinstance(answer, BaseException) and not isinstance(answer, RequestFailed | Stopped)
        ]
        return next(iter([*others, *stopped]), None)

    def _write_failed(self) -> Path:
        path = self._served.folder / FAILED
        if self._failed:
            write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self._failed))
        return path
