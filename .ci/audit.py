"""Look the pinned dependencies up in the OSV vulnerability database; exit status 1 if one is known to be vulnerable.

Where the database cannot be reached nothing is audited, which is said and is no failure: ``make audit`` must not depend
on a network. PIP_AUDIT_OSV_URL names a mirror.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    requirements = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        asked = subprocess.run(
            [
                *(sys.executable, "-m", "pip_audit", "--requirement", requirements, "--disable-pip", "--no-deps"),
                *("--vulnerability-service", "osv", "--format", "json", "--output", str(report)),
                *("--progress-spinner", "off", "--timeout", "10", "--cache-dir", str(Path(folder) / "cache")),
            ],
            capture_output=True,
            text=True,
        )
        if not report.exists():
            why = (asked.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"audit: skipped, nothing was looked up: {why[:200]}")
            return 0
        packages = json.loads(report.read_text())["dependencies"]
    looked_up = [package for package in packages if "vulns" in package]
    found = [(package, vulnerability) for package in looked_up for vulnerability in package["vulns"]]
    for package, vulnerability in found:
        fixed = ", ".join(vulnerability["fix_versions"]) or "no release yet"
        print(f"audit: {package['name']} {package['version']} has {vulnerability['id']}, fixed in {fixed}")
    print(f"audit: {len(looked_up)} packages looked up, {len(found)} vulnerabilities known")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
