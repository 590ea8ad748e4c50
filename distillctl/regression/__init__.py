"""Is one deployed graph slower or larger than another? A paired measurement with a sequential test."""
