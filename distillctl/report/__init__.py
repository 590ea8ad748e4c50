"""The page, the summary and the contract that CI reads."""
