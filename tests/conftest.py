"""Settings for all tests."""

from hypothesis import settings

# The machine may be busy: a slow example is no failure.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")
