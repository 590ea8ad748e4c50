"""What an app gets: one folder (and .zip) with graphs, tokenizer, labels, licences, code, and proof that it is whole."""
