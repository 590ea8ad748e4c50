"""`python -m tests.rank_fault FAULT STEP RANK ARGS…`: the command line, where a rank meets a fault after a step."""

import os
import signal
import sys
from collections.abc import Callable

from distillctl import cli, ranks
from distillctl.training.learner import Learner

FAULTS: dict[str, Callable[[], object]] = {
    "signal": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "fail": lambda: [][0],
}


def main() -> None:
    fault, step, rank = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sys.argv[1:4] = []
    update, done = Learner.update, iter(range(1, 10**9))

    def updated(self: Learner) -> None:
        update(self)
        if next(done) == step and ranks.number() == rank:
            FAULTS[fault]()

    Learner.update = updated  # type: ignore[method-assign]
    cli.main()


if __name__ == "__main__":
    main()
