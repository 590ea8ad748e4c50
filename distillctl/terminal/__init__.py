"""Output for terminals, pipes and logs: streams that never fail, progress, tables, and system errors in plain words."""
