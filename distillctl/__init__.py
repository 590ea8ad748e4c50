"""distillctl turns a prompt into a phone-sized model."""

__version__ = "0.1.0"
