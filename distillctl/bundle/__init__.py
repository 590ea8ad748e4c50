"""What an app gets: one folder (and .zip) with graphs, tokenizer, labels, licences and code, and proof of its state."""
