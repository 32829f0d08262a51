"""Draws docs/report.png from a run's report.html, for the README: `docs/screenshot.py [RUN_DIR] [PNG]`.

RUN_DIR is reports/latest unless given. Needs Chromium; loads nothing from the network.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = "chromium"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
)


def main(arguments: list[str]) -> int:
    """Writes the picture; returns the exit code: 1 with a sentence when there is nothing to draw."""
    run = Path(arguments[0]) if arguments else ROOT / "reports" / "latest"
    target = Path(arguments[1]) if len(arguments) > 1 else ROOT / "docs" / "report.png"
    page = run.resolve() / "report.html"
    if not page.is_file():
        print(f"{page} does not exist: run `inv collect-report` first", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--window-size=1160,1760"]
        try:
            done = subprocess.run(
                [*command, f"--screenshot={target.resolve()}", page.as_uri()],
                capture_output=True,
                text=True,
                timeout=60,
            )
        except FileNotFoundError:
            print("chromium is not installed", file=sys.stderr)
            return 1
    if done.returncode or not target.is_file():
        print(f"chromium failed: {done.stderr.strip()[-500:]}", file=sys.stderr)
        return 1
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
