"""Safe handling of untrusted input: bounds on files, JSON, templates and Parquet, and text without control codes."""
