"""`python -m distillctl`."""

from distillctl.cli import main

main()
