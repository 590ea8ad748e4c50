"""What a terminal, a pipe or a log is given: streams that never fail, progress, tables, and errors of the system."""
