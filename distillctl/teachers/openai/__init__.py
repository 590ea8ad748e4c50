"""A teacher behind an OpenAI-compatible server. Nothing here needs torch."""
