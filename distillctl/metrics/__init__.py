"""Scores, agreement and intervals."""
