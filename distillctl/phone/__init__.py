"""Measure the deployed model in a phone's browser: a page, the server that serves it, and the results."""
