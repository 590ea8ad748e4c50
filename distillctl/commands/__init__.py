"""The output of the commands, and the commands that run no stage."""
