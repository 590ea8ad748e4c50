"""Hostile files, and the command line run on each of them: `python -m tests.hostile`.

A file is called NUMBER-WHAT.EXTENSION; one whose WHAT begins with `ok-` is merely odd, and has to be taken.
"""
