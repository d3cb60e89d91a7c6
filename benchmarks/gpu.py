"""`python benchmarks/gpu.py run` from any folder: an older spelling of `python -m benchmarks gpu run`."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    places = [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    os.execve(sys.executable, [sys.executable, "-m", "benchmarks", "gpu", *sys.argv[1:]], environment)
