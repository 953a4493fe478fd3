"""Fill the tables of the pages of notebooks/ from the committed rows.

    python benchmarks/pages.py            writes the tables
    python benchmarks/pages.py --check    names the tables that differ, and fails

The text between `<!-- script.py options -->` and `<!-- -->` is the output of that script.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGES = HERE.parent / "notebooks"
BLOCK = re.compile(r"(<!-- (\w+\.py.*?) -->\n).*?(<!-- -->)", re.DOTALL)


def printed(command: str) -> str:
    """The output of a script of this folder, without empty lines at the ends."""
    script, *options = shlex.split(command)
    done = [sys.executable, HERE / script, *options]
    return subprocess.run(done, check=True, capture_output=True, text=True).stdout.strip("\n")


def main() -> None:
    stale = []
    for page in sorted(PAGES.rglob("*.md")):
        text = page.read_text()
        filled = BLOCK.sub(lambda block: f"{block[1]}{printed(block[2])}\n{block[3]}", text)
        if sys.argv[1:] != ["--check"]:
            page.write_text(filled)
        pairs = zip(BLOCK.finditer(text), BLOCK.finditer(filled))
        stale += [f"{page.name}: {old[2]}" for old, new in pairs if old[0] != new[0]]
    if stale and sys.argv[1:] == ["--check"]:
        sys.exit(
            f"These tables are not what their scripts print: {'; '.join(stale)}. Run {__file__}."
        )


if __name__ == "__main__":
    main()
