"""Device profiles: what a device would allow, as data files in device_profiles/. This host, not a phone."""

from __future__ import annotations

from importlib import resources
from typing import Any

import yaml

from distillctl.recipe.base import Count, Section


class DeviceProfile(Section):
    """threads: of every model. data_bytes: RLIMIT_DATA of the student's processes. context_tokens: lengths of view at
    which the deployed graph is timed besides."""

    about: str
    threads: Count
    data_bytes: Count
    context_tokens: tuple[Count, ...] = ()


def names() -> list[str]:
    """Of all profiles."""
    found = (file.name for file in resources.files("distillctl.recipe").joinpath("device_profiles").iterdir())
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))


def profile(name: str) -> DeviceProfile:
    """The file of that name, which is one of `names`."""
    text = resources.files("distillctl.recipe").joinpath("device_profiles", f"{name}.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return DeviceProfile.model_validate(document)
