"""The allocator can be told, or is left alone; neither harms."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import threading
from meshnode.node.allocator import trim, use_few_arenas
use_few_arenas()
threads = [threading.Thread(target=lambda: bytes(1 << 20)) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
trim()
print("alive")
"""


def test_few_arenas_and_trimming_leave_a_working_process() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.stdout == "alive\n", done.stderr
