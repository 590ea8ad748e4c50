"""Run models to measure them."""
