"""Measuring the deployed model in a phone's browser: a page, the server that hands it out, and what comes back."""
