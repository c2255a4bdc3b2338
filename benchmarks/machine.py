"""What machine and which versions a run was made with."""

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from rnnfast import _core

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


class Cache(NamedTuple):
    name: str
    size: int  # bytes


TYPICAL = [Cache("L1", 32 << 10), Cache("L2", 1 << 20), Cache("L3", 16 << 20)]  # where the system does not tell


def caches(folder: Path = CACHES) -> list[Cache]:
    """Return the levels that hold data, as Linux tells them of the first processor, the smallest first."""
    found = []
    for level in sorted(folder.glob("index*")):
        kind, number, size = ((level / name).read_text().strip() for name in ("type", "level", "size"))
        if kind != "Instruction":
            found.append(Cache(f"L{number}", int(size.removesuffix("K")) << 10))
    return sorted(found, key=lambda cache: cache.size) or TYPICAL


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def processor() -> str:
    information = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", information.read_text(), re.MULTILINE) if information.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def describe() -> dict[str, Any]:
    config = _core.config()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "caches": {cache.name: cache.size for cache in caches()},
        "memory": memory_bytes(),
        "system": platform.system() + " " + platform.release().split("-")[0],
        "python": platform.python_version(),
        "isa": config["isa"],
        "RNNFAST_ISA": os.environ.get("RNNFAST_ISA"),
        "compiler": config["compiler"],
    }
