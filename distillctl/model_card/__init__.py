"""README.md beside a graph: its frame, and what each kind of task adds."""
