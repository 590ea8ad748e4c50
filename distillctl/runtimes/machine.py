"""Describe the machine of a measurement: the facts that decide how fast a model is."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

from distillctl.run_dir.bench_facts import MachineFacts

VECTOR_FLAGS = (
    *("sse4_2", "avx", "fma", "f16c", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "neon", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)
"""CPU flags by Linux's names; asimd is NEON, asimddp its int8 dot product."""


def describe() -> MachineFacts:
    """Describe CPU, memory, operating system and load."""
    cpu = _cpuinfo()
    flags = set((cpu.get("flags") or cpu.get("Features") or "").split())
    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    return MachineFacts(
        cpu=cpu.get("model name") or cpu.get("Hardware") or platform.processor() or None,
        architecture=platform.machine(),
        cores=os.cpu_count(),
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        flags=[flag for flag in VECTOR_FLAGS if flag in flags],
        max_mhz=(frequency and frequency.max) or None,
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        memory_bytes=psutil.virtual_memory().total,
        load_average=os.getloadavg()[0],
        os=platform.platform(),
    )


ALIKE = ("cpu", "architecture", "cores", "usable_cores", "flags", "governor", "max_mhz")
"""Facts that must be equal on two machines before their times may be compared."""


def unlike(machine: MachineFacts, other: MachineFacts) -> str | None:
    """Say why times from two machines cannot be compared; None if they can."""
    pairs = {key: (getattr(machine, key), getattr(other, key)) for key in ALIKE}
    return "; ".join(f"{key}: {_short(a)} / {_short(b)}" for key, (a, b) in pairs.items() if a != b) or None


def _short(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else "unknown" if value is None else str(value)


def cpus(threads: int, seconds: float = 0.2) -> list[int]:
    """Return ``threads`` usable CPUs, those that are least busy during ``seconds``; none if a process cannot choose."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    busy = psutil.cpu_percent(seconds, percpu=True)
    return sorted(sorted(usable, key=lambda cpu: busy[cpu] if cpu < len(busy) else 0.0)[:threads])


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's lines of /proc/cpuinfo."""
    first = (_read("/proc/cpuinfo") or "").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
