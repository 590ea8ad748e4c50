"""Build and verify bundles: one folder and .zip with graphs, tokenizer, labels, licences, code and checksums."""
