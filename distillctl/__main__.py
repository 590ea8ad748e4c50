"""The console script, and `python -m distillctl`."""

import signal


def main() -> None:
    """Run the command line. A Ctrl-C during its import ends the process like any program."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from distillctl import cli

    signal.signal(signal.SIGINT, before)
    cli.main()


if __name__ == "__main__":
    main()
