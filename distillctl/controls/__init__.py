"""Controls that cost nothing: what simple methods make of the same train rows and the same answers of the teacher.

A recipe's task names them (`recipe.TaskSection.controls`); `tasks` has the methods.
"""

MOST_ROWS = 20_000
"""Train rows that controls learn from; of more, the first so many. Seconds, and some hundred megabytes."""
