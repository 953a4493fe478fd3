"""Fill the tables of notebooks/measurements from the committed rows.

    python benchmarks/pages.py            writes them
    python benchmarks/pages.py --check    says which differ, and fails

What stands between `<!-- script.py options -->` and `<!-- -->` is what that script prints.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGES = HERE.parent / "notebooks" / "measurements"
BLOCK = re.compile(r"(<!-- (\w+\.py.*?) -->\n).*?(<!-- -->)", re.DOTALL)


def printed(command: str) -> str:
    """What a script of this folder prints, without empty lines at its ends."""
    script, *options = shlex.split(command)
    done = [sys.executable, HERE / script, *options]
    return subprocess.run(done, check=True, capture_output=True, text=True).stdout.strip("\n")


def main() -> None:
    stale = []
    for page in sorted(PAGES.glob("*.md")):
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
