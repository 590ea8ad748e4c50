"""Report the phones that ran the deployed graph in their browsers."""

from __future__ import annotations

from distillctl.phone import devices
from distillctl.report.facts import DevicesFacts
from distillctl.run_dir.workspace import Workspace


def measured(workspace: Workspace) -> DevicesFacts:
    """Return the devices that ran the graph as it is now, and how many ran another."""
    quantize = workspace.manifest("quantize")
    now = {output.sha256 for output in quantize.outputs.values()} if quantize else set()
    records = devices.read(workspace)
    current = [record.figures() for record in records if record.graph_sha256 in now]
    return DevicesFacts(measured=current, earlier=len(records) - len(current))
