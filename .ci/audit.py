"""Ask for advisories about what requirements.lock pins: `python .ci/audit.py [OPTION OF pip-audit]…`.

Ends with 0 when each dependency was answered for and none has an advisory, with 1 when one has, and with 3 when it is
not known of all: pip-audit itself ends with 0 where the service knows none of the packages.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parents[1] / "requirements.lock"

#: Seconds for one request, and for all of them.
REQUEST_SECONDS, SECONDS = 5, 120

FOUND, UNKNOWN = 1, 3

COMMAND = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--disable-pip", "--require-hashes"]
FORM = ["--format", "json", "--progress-spinner", "off", "--timeout", str(REQUEST_SECONDS)]


def answered(options: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """Give what pip-audit says of each dependency, and why it says nothing."""
    try:
        done = subprocess.run(  # noqa: S603 - the arguments are ours
            [*COMMAND, *FORM, *options], capture_output=True, text=True, timeout=SECONDS, check=False
        )
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return [], f"no answer within {SECONDS} s"
    except ValueError:
        return [], (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1][:300]
    return found, "" if found else "pip-audit found no dependencies"


def judged(dependencies: Sequence[dict[str, Any]], why: str) -> tuple[int, list[str]]:
    """Give the exit code, and the lines to say."""
    skipped = [each["skip_reason"] for each in dependencies if "skip_reason" in each]
    bad = [(each, vuln) for each in dependencies for vuln in each.get("vulns", ())]
    lines = [f"{each['name']} {each['version']}: {_told(vuln)}" for each, vuln in bad]
    if skipped or why:
        asked = f"{len(skipped)} of {len(dependencies)} dependencies" if skipped else "dependencies"
        lines.append(f"advisories were NOT looked at for {asked}: {why or skipped[0]}")
    if bad:
        return FOUND, lines
    return (UNKNOWN, lines) if lines else (0, [f"no advisory for {len(dependencies)} dependencies"])


def _told(vuln: dict[str, Any]) -> str:
    fixed = ", ".join(vuln.get("fix_versions", ())) or "no version"
    return f"{vuln['id']}, mended in {fixed}"


if __name__ == "__main__":
    status, said = judged(*answered(sys.argv[1:]))
    print("\n".join(said), file=sys.stderr if status else sys.stdout)
    sys.exit(status)
