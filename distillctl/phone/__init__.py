"""Measuring the deployed model on a phone, in its browser: a page, the server that hands it out, and what comes back."""
