"""Measuring the deployed model on a phone, in its browser: a page, its server, and what comes back."""
