"""Device profiles: the limits of a device, as data files in device_profiles/. They limit this host, not a phone."""

from __future__ import annotations

from importlib import resources
from typing import Any

import yaml

from distillctl.recipe.base import Count, Section


class DeviceProfile(Section):
    """The limits of a device.

    threads: of every model. data_bytes: RLIMIT_DATA of the student's processes. context_tokens: further lengths of view
    at which the deployed graph is timed.
    """

    about: str
    threads: Count
    data_bytes: Count
    context_tokens: tuple[Count, ...] = ()


def names() -> list[str]:
    """Return the names of all profiles."""
    files = (file.name for file in resources.files("distillctl.recipe").joinpath("device_profiles").iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def profile(name: str) -> DeviceProfile:
    """Read a profile, which is one of `names`."""
    text = resources.files("distillctl.recipe").joinpath("device_profiles", f"{name}.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return DeviceProfile.model_validate(document)
