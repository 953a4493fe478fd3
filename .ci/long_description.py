"""The README as an index of packages shows it, where no path leads into the repository.

Its relative links and pictures become absolute under the `address` of pyproject.toml. Without an
address a link becomes its words, and a picture its description.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

CODE = re.compile(r"(^```.*?^```$)", re.M | re.S)
FIGURE = re.compile(r'<picture>.*?alt="([^"]*)".*?</picture>', re.S)
SOURCE = re.compile(r'(src|srcset)="(?!\w+:)([^"]+)"')
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)")


def long_description(readme: str, address: str) -> str:
    """The README with an absolute address, or words, in place of every relative path."""
    parts = CODE.split(readme)  # the odd ones are blocks of code
    parts[::2] = [
        absolute(part, address.rstrip("/")) if address else words(part) for part in parts[::2]
    ]
    return "".join(parts)


def absolute(text: str, address: str) -> str:
    raw = "?raw=true"  # hosts of repositories else answer with a page around the picture
    text = SOURCE.sub(rf'\1="{address}/\2{raw}"', text)
    return LINK.sub(lambda m: f"{m[1]}[{m[2]}]({address}/{m[3]}{raw if m[1] else ''})", text)


def words(text: str) -> str:
    text = FIGURE.sub(lambda m: f"Figure: {m[1]}.", text)
    return LINK.sub(lambda m: f"Figure: {m[2]}.".replace("*", r"\*") if m[1] else m[2], text)


class LongDescription(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = long_description(readme, self.config["address"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
