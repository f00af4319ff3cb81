"""What the one container costs: time from start to healthy, size of its image, memory of its idle processes.

    python -m bench.footprint [--idle SECONDS]

Starts a stack of its own from the built images (WHALEFALL_TAG chooses others) and removes it in the end. Memory is
PSS: what several processes share is divided among them, so that the sum is what the container really holds.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until

#: Runs in the container: Pss of every process in KiB, with its command.
MEMORY = """
import json, pathlib, re
found = []
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        rollup = (folder / "smaps_rollup").read_text()
        command = (folder / "cmdline").read_bytes().replace(b"\\0", b" ").decode(errors="replace").strip()
        parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        continue
    found.append([int(folder.name), parent, int(re.search(r"^Pss: +(\\d+)", rollup, re.M)[1]), command])
print(json.dumps(found))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure start, size and idle memory of the one container.")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds of rest before memory is read (30)")
    idle_s = parser.parse_args().idle

    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(f"whalefall-footprint-{os.getpid()}", Path(folder) / "stack")
        try:
            began = time.monotonic()
            stack.compose("up", "--detach", "--no-build", "--pull", "never")
            container = stack.container()
            wait_until(
                "healthy",
                lambda: stack.docker.api.inspect_container(container.id)["State"]["Health"]["Status"],
                lambda status: status == "healthy",
                within=120,
                every=0.05,
            )
            print(f"from `up` to healthy: {time.monotonic() - began:.1f} s")
            print(f"image: {container.image.attrs['Size'] / 1e6:.0f} MB")
            rested = time.monotonic() + idle_s
            wait_until("the rest before the reading", lambda: time.monotonic() > rested, within=idle_s + 5, every=1)
            found = json.loads(stack.execute("python3", "-c", MEMORY, container=container))
        finally:
            stack.remove()

    # The reader itself is a child of nobody in the container.
    processes = [(pss, command) for pid, parent, pss, command in found if parent != 0 or pid == 1]
    for pss, command in sorted(processes, reverse=True):
        print(f"{pss / 1024:7.1f} MiB  {command[:100]}")
    print(f"{sum(pss for pss, _ in processes) / 1024:7.1f} MiB  PSS of all processes")


if __name__ == "__main__":
    main()
