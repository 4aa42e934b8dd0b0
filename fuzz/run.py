"""Fuzz one target for some seconds: `python fuzz/run.py TARGET SECONDS`; what is found lies in `.fuzz/`.

atheris leads the inputs by what they cover of the code. An input that raises, or that takes ten seconds, ends it with
an exit code that is not 0; `python fuzz/run.py TARGET FILE` runs it again.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["distributary", "bson"]):
    from fuzz.targets import ROOT, TARGETS, seeds

LIMITS = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=4096", "-print_final_stats=1"]


def corpus(name: str) -> Path:
    """Give the folder with what is known to cover the code, and the seeds in it."""
    folder: Path = ROOT / ".fuzz" / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (folder / f"seed-{number}").write_bytes(seed)
    return folder


def main(name: str, seconds: str) -> None:
    """Fuzz, or run one input."""
    found = f"-artifact_prefix={ROOT / '.fuzz' / name}-"
    once = Path(seconds).exists()
    inputs = [seconds] if once else [f"-max_total_time={seconds}", str(corpus(name))]
    atheris.Setup([sys.argv[0], *LIMITS, found, *inputs], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
