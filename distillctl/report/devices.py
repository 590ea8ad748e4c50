"""Report the phones that ran the deployed graph in their browsers."""

from __future__ import annotations

from distillctl.phone import devices
from distillctl.report.facts import DevicesFacts
from distillctl.run_dir.workspace import Workspace


def measured(workspace: Workspace) -> DevicesFacts:
    """Return the devices that ran the graph as it is now, and how many ran another."""
    quantize = workspace.manifest("quantize")
    now = {output.sha256 for output in quantize.outputs.values()} if quantize else set()
    found = devices.read(workspace)
    current = [one.figures() for one in found if one.graph_sha256 in now]
    return DevicesFacts(measured=current, earlier=len(found) - len(current))
