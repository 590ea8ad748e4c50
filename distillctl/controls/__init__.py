"""Controls that cost nothing: what simple methods make of the same train rows and the same answers of the teacher."""

LABELS = {
    "majority": "always answering the teacher's most frequent label",
    "bag_of_words": "a bag of words, trained on the same soft labels",
}
TEXTS = {
    "most_frequent": "always giving the teacher's most frequent answer",
    "nearest_row": "giving the teacher's answer to the most similar train row",
}
"""Control → what it is, in words; the column of train/controls.parquet that holds its answers."""
EVERY = LABELS | TEXTS
MOST_ROWS = 20_000
"""Train rows that controls learn from; of more, the first so many. Seconds, and some hundred megabytes."""
