"""Look every pinned dependency up in the advisory database, and say how many were looked up.

    python .ci/audit.py

Exit code 0: nothing that could be looked up has a known vulnerability; 1: something has; 3: NOT
AUDITED, the database was not reached. (pip-audit alone says "no known vulnerabilities" where it
found none of the packages, as behind a mirror that has no advisories.)
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PINNED = [Path(__file__).with_name(name) for name in ("constraints.txt", "triton.txt")]
CLEAN, VULNERABLE, NOT_AUDITED = 0, 1, 3
TIMEOUT_S = 900


def main() -> int:
    """Run pip-audit on the constraints; print the verdict, one line where it is short."""
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip"]
    command += [word for path in PINNED for word in ("-r", str(path))]
    command += ["--progress-spinner", "off", "--timeout", "15", "-f", "json"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        print(f"NOT AUDITED: no answer within {TIMEOUT_S} s.")
        return NOT_AUDITED
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        said = (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
        print(f"NOT AUDITED: {said[:200]}")
        return NOT_AUDITED
    code, lines = judged(found)
    print("\n".join(lines))
    return code


def judged(found: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """The exit code and what to print for pip-audit's list of dependencies."""
    looked_up = [each for each in found if "vulns" in each]
    skipped = [each["name"] for each in found if "vulns" not in each]
    if not looked_up:
        return NOT_AUDITED, [
            f"NOT AUDITED: the advisory database knew none of {len(found)} packages. Is pypi.org "
            "reachable?"
        ]
    lines = [
        f"{each['name']} {each['version']}: {vuln['id']}, fixed in "
        f"{', '.join(vuln.get('fix_versions') or ['no version yet'])}"
        for each in looked_up
        for vuln in each["vulns"]
    ]
    told = f"{len(looked_up)} of {len(found)} pinned packages audited, {len(lines)} advisories"
    if skipped:
        told += f"; not found there: {', '.join(sorted(skipped))}"
    return (VULNERABLE if lines else CLEAN), [*lines, f"{told}."]


if __name__ == "__main__":
    sys.exit(main())
