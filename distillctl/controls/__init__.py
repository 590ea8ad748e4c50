"""Controls: free baselines, learned from the same train rows and the teacher's same answers."""

CLASSIFY = {
    "majority": "always answering the teacher's most frequent label",
    "bag_of_words": "a bag of words, trained on the same soft labels",
}
GENERATE = {
    "most_frequent": "always giving the teacher's most frequent answer",
    "nearest_row": "giving the teacher's answer to the most similar train row",
}
"""Control → its description. It also names the column of train/controls.parquet with its answers."""
ALL = CLASSIFY | GENERATE
MOST_ROWS = 20_000
"""Maximal number of train rows that controls learn from, the first ones. It takes seconds and some 100 MB."""
