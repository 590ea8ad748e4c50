"""Make the report: the page, the CI summary, and the JSON contract."""
