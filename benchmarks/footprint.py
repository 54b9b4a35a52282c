"""What the core costs before it does anything: size of its installation, time and memory of its import.

    python benchmarks/footprint.py

Adds up the files of Hawkeye and of all that it requires without extras, as installed here, and says how much of it a
small machine can do without. Prints JSON; exits with 1 above 450 MB or 0.3 s, or where the import loads OpenVINO.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

LIMIT_BYTES, LIMIT_S = 450_000_000, 0.3
OTHER_DEVICES = ("libopenvino_intel_gpu_plugin.so", "libopenvino_intel_npu_plugin.so", "cache.json")
_PROBE = """
import sys, time
started = time.perf_counter()
import hawkeye
spent = time.perf_counter() - started
import resource
print(spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "openvino" in sys.modules)
"""


def required(name: str, found: dict[str, int] | None = None) -> dict[str, int]:
    """Bytes of a package and of all that it requires without extras, by name."""
    found = {} if found is None else found
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in found:
        return found
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError:  # for another system or version of Python
        return found
    paths = (Path(str(package.locate_file(file))) for file in package.files or ())
    found[key] = sum(path.stat().st_size for path in paths if path.is_file())
    for line in package.requires or ():
        requirement, _, marker = line.partition(";")
        if "extra" not in marker:
            required(re.split(r"[^\w.-]", requirement.strip())[0], found)
    return found


def bytecode(names: Iterable[str]) -> int:
    """Bytes of compiled Python among the files of packages: pip makes it, and it can be left out (--no-compile)."""
    files = (file for name in names for file in metadata.distribution(name).files or () if file.suffix == ".pyc")
    paths = (Path(str(file.locate())) for file in files)
    return sum(path.stat().st_size for path in paths if path.is_file())


def other_devices() -> int:
    """Bytes of OpenVINO's plugins for GPUs and NPUs, which Hawkeye never opens."""
    files = (file for file in metadata.distribution("openvino").files or () if file.name in OTHER_DEVICES)
    paths = (Path(str(file.locate())) for file in files)
    return sum(path.stat().st_size for path in paths if path.is_file())


def main() -> int:
    """Measure this environment."""
    sizes = required("hawkeye")
    # An installation in place has its code elsewhere.
    source = Path(__file__).resolve().parents[1] / "src" / "hawkeye"
    sizes["hawkeye"] = max(sizes["hawkeye"], sum(path.stat().st_size for path in source.rglob("*.py")))
    probes = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=True)
        seconds, peak, openvino = done.stdout.split()
        probes.append((float(seconds), int(peak), openvino == "True"))
    result = {
        "installed_bytes": sum(sizes.values()),
        "of_which_bytecode": bytecode(sizes),
        "of_which_other_devices": other_devices(),
        "packages": dict(sorted(sizes.items(), key=lambda item: -item[1])),
        "import_s": statistics.median(probe[0] for probe in probes),
        "import_peak_rss_bytes": max(probe[1] for probe in probes),
        "import_loads_openvino": any(probe[2] for probe in probes),
    }
    print(json.dumps(result, indent=2))
    good = result["installed_bytes"] < LIMIT_BYTES and result["import_s"] < LIMIT_S
    return 0 if good and not result["import_loads_openvino"] else 1


if __name__ == "__main__":
    sys.exit(main())
