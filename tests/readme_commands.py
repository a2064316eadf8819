"""Run the shell commands of a Markdown file: each ```bash block that follows a `<!-- ci -->` line, in order.

    python tests/readme_commands.py README.md

Blocks run as one script from the repository's root, with the environment's commands first on the path.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

_BLOCK = re.compile(r"<!-- ci -->\s*\n```bash\n(.*?)```", re.DOTALL)


def commands(markdown: str) -> str:
    """The marked blocks, joined."""
    return "\n".join(_BLOCK.findall(markdown))


def main(path: Path) -> int:
    script = commands(path.read_text(encoding="utf-8"))
    if not script:
        sys.stderr.write(f"{path} has no block marked with <!-- ci -->\n")
        return 1
    environment = {**os.environ, "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))}
    return subprocess.run(["bash", "-euxo", "pipefail", "-c", script], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
