"""What the report says of phones that ran the deployed graph in their browsers."""

from __future__ import annotations

from typing import Any

from distillctl.phone import devices
from distillctl.workspace import Workspace


def measured(workspace: Workspace, graph_sha256: str | None) -> dict[str, Any]:
    """``measured``: the devices that ran this very graph; ``earlier``: how many ran another."""
    found = devices.read(workspace)
    current = [one.figures() for one in found if one.graph_sha256 == graph_sha256]
    return {"measured": current, "earlier": len(found) - len(current)}
