"""What a result file says of the machine."""

import os
import platform
from pathlib import Path
from typing import Any

_VECTORS = ("avx512f", "avx2", "avx")  # the widest first


def machine() -> dict[str, Any]:
    """Its cores and processor; on Linux by name, with its widest vectors, which decide how fast it multiplies."""
    found: dict[str, Any] = {"cores": os.cpu_count(), "processor": platform.machine()}
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "model name" in told:
        found["processor"] = told["model name"]
    if widest := next((name for name in _VECTORS if name in told.get("flags", "").split()), None):
        found["vectors"] = widest
    return found
