"""Fill the tables of README.md from the committed rows.

    python benchmarks/readme.py            writes them
    python benchmarks/readme.py --check    says which differ, and fails

What stands between `<!-- script.py options -->` and `<!-- -->` is what that script prints.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BLOCK = re.compile(r"(<!-- (\w+\.py.*?) -->\n).*?(<!-- -->)", re.DOTALL)


def printed(command: str) -> str:
    """What a script of this folder prints, without empty lines at its ends."""
    script, *options = shlex.split(command)
    done = [sys.executable, HERE / script, *options]
    return subprocess.run(done, check=True, capture_output=True, text=True).stdout.strip("\n")


def main() -> None:
    page = HERE / "README.md"
    text = page.read_text()
    filled = BLOCK.sub(lambda block: f"{block[1]}{printed(block[2])}\n{block[3]}", text)
    if sys.argv[1:] != ["--check"]:
        page.write_text(filled)
        return
    pairs = zip(BLOCK.finditer(text), BLOCK.finditer(filled))
    if stale := [old[2] for old, new in pairs if old[0] != new[0]]:
        sys.exit(f"README.md has not what these print: {', '.join(stale)}. Run {Path(__file__)}.")


if __name__ == "__main__":
    main()
