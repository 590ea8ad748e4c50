"""Scores, agreement, intervals, and cautions about doubtful figures."""
