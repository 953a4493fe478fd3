"""A report as one page of HTML that needs no other file and no network."""

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from string import Template
from typing import Any

from unrolled._text import Grid

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>$title</title>
<style>
:root { --ink: light-dark(#1f2328, #e6edf3); --soft: light-dark(#59636e, #9198a1);
  --line: light-dark(#d1d9e0, #3d444d); --paper: light-dark(#fff, #0d1117);
  --tint: light-dark(#f6f8fa, #161b22); --mark: light-dark(#0072b2, #56b4e9) }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 68rem; margin: auto; padding: 1rem }
p, .answer { max-width: 46rem } .answer { font-size: 1.25rem } a { color: var(--mark) }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; border-bottom: 1px solid var(--line) }
summary { font-size: 1.3rem; font-weight: 600; cursor: pointer; margin: 1.2rem 0 .4rem }
.wide { overflow-x: auto } pre { overflow-x: auto; background: var(--tint); padding: .8rem }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--paper) }
th { cursor: pointer; color: var(--soft); vertical-align: bottom }
th[data-dir="1"]::after { content: " \\25B4" } th[data-dir="-1"]::after { content: " \\25BE" }
tbody tr:hover td { background: var(--tint) }
figure { margin: 1rem 0 } figcaption { color: var(--soft); font-size: .9rem }
figure svg, figure img { max-width: 100%; height: auto; background: #fff; border-radius: 6px }
@media print { :root { color-scheme: light } nav { display: none } body { max-width: none }
  .wide { overflow: visible } table { font-size: .7rem } figure, tr { break-inside: avoid } }
</style></head><body>
<h1>$title</h1><p class="answer">$answer</p><nav>$links</nav>
$body
<script>
const value = (row, i) => {
  const text = row.cells[i].textContent.trim(), number = parseFloat(text.replace(/,/g, ""));
  return isNaN(number) ? text : number;
};
const order = (a, b) => a === "" ? 1 : b === "" ? -1 :
  typeof a === typeof b ? (a > b) - (a < b) : typeof a === "number" ? -1 : 1;
for (const head of document.querySelectorAll("thead th")) head.onclick = () => {
  const table = head.closest("table"), dir = head.dataset.dir === "1" ? -1 : 1;
  for (const other of table.querySelectorAll("th")) delete other.dataset.dir;
  head.dataset.dir = dir;
  const by = row => value(row, head.cellIndex), body = table.tBodies[0];
  const empty = (a, b) => by(a) === "" || by(b) === "";
  body.append(...[...body.rows].sort(
    (a, b) => order(by(a), by(b)) * (empty(a, b) ? 1 : dir)));
};
addEventListener("beforeprint",
  () => document.querySelectorAll("details").forEach(part => part.open = true));
</script></body></html>
""")


def page(
    title: str,
    answer: str,
    sections: Sequence[tuple[str, Iterable[str], Mapping[str, Any]]],
    facts: Mapping[str, str],
    command: str,
) -> str:
    """The page.

    Args:
        title: of the page.
        answer: the first sentence.
        sections: title, parts (paragraphs in Markdown, tables as `Grid`, text between ```) and
            figures of matplotlib by caption.
        facts: versions and settings.
        command: what repeats it.
    """
    body = [_section(i, *section) for i, section in enumerate(sections)]
    rows = [[name, str(value)] for name, value in facts.items()]
    repeat = [f"```\n{command}\n```", _table(["", ""], rows)]
    titles = [*(section[0] for section in sections), "Repeat"]
    body.append(_section(len(body), "Repeat", repeat, {}))
    links = " ".join(f'<a href="#s{i}">{escape(name)}</a>' for i, name in enumerate(titles))
    return _PAGE.substitute(
        title=escape(title), answer=_inline(answer), links=links, body="\n".join(body)
    )


def _section(i: int, title: str, parts: Iterable[str], figures: Mapping[str, Any]) -> str:
    shown = [_part(part) for part in parts if part.strip()]
    for j, (caption, figure) in enumerate(figures.items()):
        below = f"<figcaption>{_inline(caption)}</figcaption>"
        shown.append(f"<figure>{_picture(figure, f's{i}f{j}')}{below}</figure>")
    head = f'<details open id="s{i}"><summary>{escape(title)}</summary>'
    return "\n".join([head, *shown, "</details>"])


def _part(part: str) -> str:
    if isinstance(part, Grid):
        return "\n".join([_table(part.columns, part.rows), *map(_part, part.notes)])
    if part.startswith("<"):
        return part
    if part.startswith("```"):
        return f"<pre>{escape(part.strip('`').strip())}</pre>"
    return "\n".join(f"<p>{_inline(text)}</p>" for text in part.split("\n\n"))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>\n" for row in rows
    )
    thead = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    return f'<div class="wide"><table>{thead}<tbody>{body}</tbody></table></div>'


def _inline(text: str) -> str:
    """Code and emphasis of Markdown."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
    return re.sub(r"(?<!\w)\*([^*\s][^*]*)\*(?!\w)", r"<em>\1</em>", text)


def _picture(figure: Any, name: str) -> str:
    """A figure of curves as SVG with names of its own, one with pictures as PNG."""
    from matplotlib import rc_context

    with io.BytesIO() as blob:
        if any(panel.images for panel in figure.axes):
            figure.savefig(blob, format="png", dpi=110)
            data = base64.b64encode(blob.getvalue()).decode()
            return f'<img alt="" src="data:image/png;base64,{data}">'
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "unrolled"}):
            figure.savefig(blob, format="svg", metadata={"Date": None})
        svg = blob.getvalue().decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
