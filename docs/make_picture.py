"""Make the README's picture of a report: `python docs/make_picture.py RUN/report.html docs/report.png`.

Needs a chromium binary. The picture shows the head of the page and the figure of the search, on one screen.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT = 300 * 1024  # bytes
SIZE = "1180,1460"
HIDE = """<style>
main > section:not(:has(#pareto)), section > h2, section > #strengths, details, footer { display: none; }
main > section { margin-top: 0; }
section .figure { margin-top: 14px; }
header { padding-top: 32px; }
</style>"""


def main() -> int:
    """Take the picture; 1 where it cannot be taken or is too large."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("report", type=Path, help="report.html of a run")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        print("no chromium binary found: apt-get install chromium", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "report.html"
        page.write_text(arguments.report.read_text(encoding="utf-8").replace("</head>", f"{HIDE}</head>", 1), "utf-8")
        picture = Path(scratch) / "report.png"
        options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        options += "--disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=10000"
        subprocess.run(
            [chromium, *options.split(), f"--user-data-dir={scratch}/profile", f"--window-size={SIZE}",
             f"--screenshot={picture}", page.as_uri()],
            check=True,
            capture_output=True,
            timeout=240,
        )  # fmt: skip
        if picture.stat().st_size > LIMIT:
            print(f"the picture has {picture.stat().st_size:,} bytes, more than {LIMIT:,}", file=sys.stderr)
            return 1
        shutil.move(picture, arguments.picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
