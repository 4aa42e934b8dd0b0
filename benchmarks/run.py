"""`python benchmarks/run.py`: measure distributary against two hand-written loops; see `README.md` here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.command import main

if __name__ == "__main__":
    main()
