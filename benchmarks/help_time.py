"""How long `understudy --help` takes as a process of its own, beside a Python that does nothing: 15 runs each, median."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 15
BUDGET = 0.3


def seconds(command: list[str]) -> float:
    """Median wall time of the command."""
    took = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def main() -> None:
    """Print both figures and the budget."""
    nothing = seconds([sys.executable, "-c", "pass"])
    helped = seconds([sys.executable, "-m", "understudy", "--help"])
    print(f"python -c pass      {nothing:.3f} s")
    print(f"understudy --help   {helped:.3f} s   budget {BUDGET} s: {'within' if helped <= BUDGET else 'EXCEEDED'}")


if __name__ == "__main__":
    main()
