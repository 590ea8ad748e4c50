"""What a command prints, or does besides running a stage."""
