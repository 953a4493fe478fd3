"""The documentation: `python -m sphinx -W notebooks build/site`, then open build/site/index.html.

Neither the build nor the pages fetch anything. Formulas are MathML, fonts are those of the reader,
and the search runs in the browser. Pages are plain Markdown; this file adds the reference of every
module that api.md names, the options of the command line, the notebooks with their stored outputs,
and a link behind every name of the library.
"""

import ast
import base64
import functools
import importlib
import inspect
import json
import os
import re
import sys
from operator import attrgetter
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from myst_parser.parsers.sphinx_ import MystParser
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import unrolled  # noqa: E402
from unrolled._base.results import Result  # noqa: E402
from unrolled.app import cli  # noqa: E402

project, version = "unrolled", unrolled.__version__
html_title = f"unrolled {version}"
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",  # Args, Returns, Raises
    "sphinx_codeautolink",  # names in code become links
    "sphinx_copybutton",
    "sphinx_design",  # cards
    "myst_parser",
]
exclude_patterns = ["README.md", "**/_*"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["codeautolink.match_block", "codeautolink.parse_block"]  # shell, and excerpts

default_role = "py:obj"  # `fit` in a docstring is a link to it
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
maximum_signature_line_length = 80
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
toc_object_entries_show_parents = "hide"
codeautolink_global_preface = "import jax, optax\nimport jax.numpy as jnp\nimport unrolled as ur"
codeautolink_concat_default = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_search_scorer = str(HERE / "search.js")
html_copy_source = html_show_copyright = html_show_sphinx = False
html_math_renderer = "mathml"

# Documents that live elsewhere, by their page.
ELSEWHERE = {
    "measurements": HERE.parent / "benchmarks" / "README.md",
    "contributing": HERE.parent / ".github" / "CONTRIBUTING.md",
    "changes": HERE.parent / ".github" / "CHANGELOG.md",
}
PAGES = {path: page for page, path in ELSEWHERE.items()}
PAGES |= {HERE / "README.md": "gallery", HERE.parent / "README.md": "index"}


LISTS = "__all__", "__results__", "__own__"  # of a module, see `unrolled._base.offer`


def public(module):
    """The public names of a module: its lists, else what is defined in it."""
    own = (name for name, value in vars(module).items() if is_from(value, module.__name__))
    listed = [name for some in LISTS for name in vars(module).get(some, ())]
    return sorted(listed or (name for name in own if name[0] != "_"))


def is_from(value, module):
    return getattr(value, "__module__", "") == module


MODULES = [
    f"unrolled.{name}"
    for name in re.findall(r"^\| `([\w.]+)`", (HERE / "api.md").read_text(), re.M)
]
# Every public name by the module that documents it: its own, else the first that offers it.
NAMES, PLACES = {}, {}
for module in sorted(MODULES):
    for name in public(importlib.import_module(module)):
        NAMES[f"{module}.{name}"] = getattr(sys.modules[module], name)
for full, value in NAMES.items():
    near = getattr(value, "__module__", "").startswith(full.rpartition(".")[0])
    if near or id(value) not in PLACES:
        PLACES[id(value)] = full
codeautolink_inventory_map = {
    f"{value.__module__}.{value.__qualname__}{end}": f"{PLACES[id(value)]}{end}"
    for value in NAMES.values()
    if hasattr(value, "__qualname__")
    for end in ("", *(f".{n}" for n in dir(value) if inspect.isclass(value) and n[0] != "_"))
}


def write_reference(app):
    """One page for every module: tables of its names, then each name in full, if not elsewhere."""
    (HERE / "api").mkdir(exist_ok=True)
    for module in MODULES:
        own = [
            n
            for n in public(sys.modules[module])
            if PLACES[id(NAMES[f"{module}.{n}"])] == f"{module}.{n}"
        ]
        own.sort(key=str.swapcase)  # what one calls, then types and constants
        short, groups = module.removeprefix("unrolled."), list(grouped(module, own))
        page = [f".. automodule:: {module}", "   :no-members:", ""]
        for title, end, names in groups:
            page += [f".. rubric:: {prose(title)}", ""] if title else []
            page += table(module, names)
            if end:
                head = f"`{short}`: {title.lower()}" if end in APART else title
                write_page(
                    f"{short}.{end}", head, in_full(module, names), "---\norphan: true\n---\n"
                )
        page += in_full(module, [n for _, end, names in groups if not end for n in names])
        write_page(short, f"`{module}`", page)


def write_page(name, title, lines, options=""):
    text = "\n".join([f"# {title}", "", "```{eval-rst}", *lines, "```", ""])
    (HERE / "api" / f"{name}.md").write_text(options + text)


# Files of `pursuit` and `theory` in the order of reading; other files follow.
ORDER = (
    *("lasso", "lasso_batch", "omp", "basis_pursuit", "ista", "layered", "multilayer"),
    *("coherence", "generalized", "schedules", "convergence", "uniqueness", "stability"),
    *("certificates", "codes", "signals"),
)


APART, LONG = ("results", "own"), 25  # pages of a module with more names than these


def grouped(module, own):
    """The names of a module in groups: a title, the end of the name of a page or "", and names."""
    if module == "unrolled.layers":
        families = [name for name in own if name.islower() and is_layer(NAMES[f"{module}.{name}"])]
        yield "Families", "families", families
        called = [name for name in own if name in module_of(module).__all__]
        others = [name for name in called if name not in families]
        yield "Params as arrays over the steps, or as a tuple", "stacks", others
        bases = [name for name in own if name[0].isupper() and is_layer(NAMES[f"{module}.{name}"])]
        yield "To write your own: base classes", "bases", bases
        others = [name for name in own if name not in called + bases]
        yield "To write your own: params and helpers", "params", others
    elif module in ("unrolled.pursuit", "unrolled.theory"):
        files = [file for name, file in [*sys.modules.items()] if name.startswith(f"{module}._")]
        listed = {file: getattr(file, "__all__", ()) for file in files}
        others = [name for name in own if name in module_of(module).__own__]
        called = [name for name in own if name not in others]
        names = {file: [name for name in called if name in listed[file]] for file in files}
        ends = {file.__name__.rpartition("._")[2]: file for file in files if names[file]}
        for end in sorted(ends, key=lambda end: (*ORDER, end).index(end)):
            title = " ".join(ends[end].__doc__.partition("\n\n")[0].split()).rstrip(".")
            yield title, end, names[ends[end]]
        yield "To write your own", "own", others
    else:
        lists = [vars(module_of(module)).get(some, ()) for some in LISTS]
        called, results, others = ([name for name in own if name in some] for some in lists)
        yield "", "", called if any(lists) else own
        for title, end, names in zip(("Results", "To write your own"), APART, (results, others)):
            if names:
                yield title, end if len(own) > LONG else "", names


def module_of(name):
    return sys.modules[name]


def is_layer(value):
    return inspect.isclass(value) and issubclass(value, unrolled.layers.Layer)


def table(module, names):
    """The names with the first sentences of their docstrings."""
    lines = [".. list-table::", "   :class: autosummary", ""]
    for name in names:
        value = NAMES[f"{module}.{name}"]
        said = value.__doc__ if is_documented(value) else comment(module, name)
        first = prose(" ".join(said.partition("\n\n")[0].split())).rstrip(".")
        lines += [f"   * - :py:obj:`{name} <{module}.{name}>`", f"     - {first}."]
    return [*lines, ""] if names else []


def in_full(module, names):
    """The directives that document some names."""
    lines = []
    for name in names:
        value, full = NAMES[f"{module}.{name}"], f"{module}.{name}"
        if inspect.isclass(value):
            # The page of its base documents what a class inherits.
            alone = not any(base.__module__.startswith("unrolled.") for base in value.__bases__)
            lines += [f".. autoclass:: {full}", "   :members:"]
            lines += ["   :undoc-members:", ""] if alone else [""]
            for field in value._fields if issubclass(value, Result) else ():
                said = prose(" ".join(described(value, field).split()))
                lines += [f"   .. py:attribute:: {field}", "", f"      {said}", ""]
        elif is_documented(value):
            lines += [f".. autofunction:: {full}", ""]
        else:
            lines += [f".. py:data:: {full}", "", f"   {comment(module, name)}", ""]
    return lines


def is_documented(value):
    """Whether the docstring of a value speaks of the value, and not of its type."""
    return inspect.isclass(value) or inspect.isroutine(value) or hasattr(value, "__wrapped__")


def comment(module, name):
    """The comment above or behind the definition of a constant or an alias, else its kind."""
    folder = Path(sys.modules[module].__file__)
    files = folder.parent.glob("*.py") if folder.stem == "__init__" else [folder]
    source = "".join(path.read_text() for path in sorted(files))
    said = re.search(rf"((?:^# .*\n)*)^{name}\b[^#\n]*(?:# (.*))?$", source, re.M)
    value = NAMES[f"{module}.{name}"]
    kind = f"A value of the class `{type(value).__name__}`."
    if marks := getattr(value, "__metadata__", ()):
        kind = f"The annotation `{marks[0]!r}` of a field of params."
    return re.sub(r"\s*# ", " ", said[1]).strip() or said[2] or kind


def every_page(app, env, added, changed, removed):
    """A build reads all pages: codeautolink forgets those of Markdown that it does not see anew."""
    return env.found_docs


class Links(SphinxTransform):
    """`ur.fit` and `theory.schedule` in a page become links, as names in a docstring are."""

    default_priority = 400

    def apply(self):
        for literal in list(self.document.findall(nodes.literal)):
            text, inside = literal.astext(), (nodes.reference, nodes.title, addnodes.pending_xref)
            name = re.fullmatch(r"(ur\.|unrolled\.)?([a-z_]+\.)*\w+(\(.*\))?", text)
            if name and not isinstance(literal.parent, inside):
                link = {"refdomain": "py", "reftype": "obj", "reftarget": text}
                literal.replace_self(addnodes.pending_xref("", literal.deepcopy(), **link))
        for link in self.document.findall(addnodes.pending_xref):
            link.attributes.pop("refspecific", None)


def resolve(app, env, node, contnode):
    """Where a name as it is used, `ur.fit`, `theory.schedule` or `schedule`, is documented."""
    if node["refdomain"] != "py" or "refdoc" not in node:
        return None
    objects = env.domains["py"].objects
    name = re.sub(r"^(ur|unrolled)\.|\(.*", "", node["reftarget"])
    places = [place for place in PLACES.values() if place.endswith(f".{name}")]
    try:
        value = attrgetter(name)(unrolled)
    except AttributeError:
        value = None
    known = PLACES.get(id(value))
    alone = places[0] if "py:module" in node and len(places) == 1 else None
    for full in (f"{node.get('py:module')}.{name}", f"unrolled.{name}", known, alone):
        if full in objects:
            page = app.builder.get_relative_uri(node["refdoc"], objects[full].docname)
            uri = f"{page}#{objects[full].node_id}"
            return nodes.reference("", "", contnode, internal=True, refuri=uri, reftitle=full)
    return None


def mathml(text, display="inline"):
    """A formula as MathML, which browsers draw themselves."""
    text = re.sub(r"\\arg\s*\\(min|max)", r"\\operatorname{arg\\,\1}", text)
    if r"\\" in text and r"\begin" not in text:
        text = rf"\begin{{aligned}}{text}\end{{aligned}}"
    return convert(text, display=display)


def inline_formula(self, node):
    self.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def block_formula(self, node):
    self.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


class Notebook(MystParser):
    """A notebook with its stored outputs, read as Markdown; `execute.py` runs it."""

    supported = ("ipynb",)

    def parse(self, text, document):
        super().parse("\n\n".join(map(markdown, json.loads(text)["cells"])), document)


def markdown(cell):
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        attached = cell.get("attachments", {})
        link = r"!\[([^\]]*)\]\(attachment:([\w.]+)\)"
        return re.sub(link, lambda m: inline(attached[m[2]]["image/png"], m[1]), source)
    code = f"```python\n{source}\n```"
    if "hide-input" in cell["metadata"].get("tags", ()):
        code = f":::{{dropdown}} Code\n{code}\n:::\n"
    return "\n".join([code, *map(shown, cell["outputs"])])


def inline(picture, text):
    """A picture that is part of its page."""
    return f'<img class="output" alt="{text}" src="data:image/png;base64,{picture.strip()}">\n'


def shown(output):
    """An output: a picture or a table where there is one, else its text."""
    data = output.get("data", {"text/plain": output.get("text", "")})
    if picture := data.get("image/png"):
        return inline(picture, data["text/plain"][0][1:-1])
    if table := data.get("text/html"):
        return f'<div class="output">\n{"".join(table)}\n</div>\n'
    return f"```{{code-block}} text\n:class: output\n\n{''.join(data['text/plain'])}\n```"


def read(app, docname, source):
    """The text of a page: that of a document elsewhere, and cards for the rows of the gallery."""
    path = ELSEWHERE.get(docname, Path(app.env.doc2path(docname)))
    if docname in ELSEWHERE:
        source[0] = path.read_text()
    if path.suffix == ".md":
        link = r"\[([^\]]*)\]\(([^)\s:#]+)(#[^)\s]*)?\)"
        source[0] = re.sub(link, lambda m: relinked(docname, path.parent, *m.groups("")), source[0])
    if docname == "measurements":
        source[0] += "\n```{toctree}\n:hidden:\n:glob:\nmeasurements/*\n```\n"
    if docname == "gallery":
        source[0] = re.sub(r"(^\|.*\n)+", cards, source[0], flags=re.M)


def relinked(docname, folder, text, file, anchor):
    """A link as its page needs it: documents elsewhere have pages here, and folders have none."""
    found = (folder / file).resolve()
    if found.is_dir():
        return text
    found = HERE / f"{PAGES[found]}.md" if found in PAGES else found
    if not found.exists():
        return f"[{text}]({file}{anchor})"
    return f"[{text}]({os.path.relpath(found, (HERE / docname).parent)}{anchor})"


def cards(table):
    """The rows `| [01](01_name.ipynb) | question | answer |` as cards with a picture each."""
    rows = re.findall(r"^\| \[\d+\]\((\w+)\.ipynb\) \| (.*?) \| (.*) \|$", table[0], flags=re.M)
    grid = "".join(
        f":::{{grid-item-card}} {question}\n:link: {stem}\n:link-type: doc\n"
        f'<img src="_thumbnails/{stem}.png" alt="">\n\n{answer}\n:::\n'
        for stem, question, answer in rows
    )
    return f"::::{{grid}} 1 1 2 2\n:gutter: 3\n{grid}::::\n"


def thumbnails(app):
    """A figure of every notebook for the gallery: that of the cell tagged `hero`, else the last."""
    folder = Path(app.outdir) / "_thumbnails"
    folder.mkdir(parents=True, exist_ok=True)
    for path in HERE.glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        cells = [c for c in cells if "hero" in c["metadata"].get("tags", ())] or cells
        data = [output.get("data", {}) for cell in cells for output in cell.get("outputs", ())]
        picture = [d["image/png"] for d in data if "image/png" in d][-1]
        (folder / f"{path.stem}.png").write_bytes(base64.b64decode(picture))


class CommandLine(SphinxDirective):
    """The help of every command, as its parser prints it."""

    def run(self):
        parser = cli._parser()
        commands = parser._subparsers._group_actions[0].choices
        return [node for name, command in commands.items() for node in self.section(name, command)]

    def section(self, name, parser):
        section = nodes.section(ids=[f"unrolled-{name}"])
        section += nodes.title("", f"unrolled {name}")
        section += nodes.literal_block("", parser.format_help(), language="text")
        return [section]


# Names with one meaning everywhere, such as `theta`.
GLOSSARY = {
    name: meaning
    for names, meaning in re.findall(
        r"^\| (`.*?) \| (.*?) \|", (HERE / "reference" / "glossary.md").read_text(), re.M
    )
    for name in re.findall(r"`(\w+)`", names)
}


@functools.cache
def source_of(record):
    """The source of a record, and of the records that it extends."""
    own = (base for base in record.__mro__ if base.__module__.startswith("unrolled."))
    return "\n".join(map(inspect.getsource, own))


def fields(app, what, name, obj, options, lines):
    """Describe a field of a NamedTuple."""
    if not lines or lines[0].startswith("Alias for field number"):
        owner, field = name.rsplit(".", 1)
        module, _, owner = owner.rpartition(".")
        record = getattr(sys.modules.get(module), owner, None)
        if inspect.isclass(record):
            lines[:] = [described(record, field)]


def described(record, field):
    """The comment behind a field of a record, or above it, else its line in the glossary."""
    source = source_of(record)
    found = re.search(rf"((?:^    # .*\n)*)^    {field}: [^#\n]*(?:# (.*))?$", source, re.M)
    return found and (re.sub(r" *# ", " ", found[1]).strip() or found[2]) or GLOSSARY.get(field, "")


def first_words(app, what, name, obj, options, lines):
    """A module is introduced by its file, also where `help` shows more."""
    if what == "module":
        source = ast.get_docstring(ast.parse(Path(obj.__file__).read_text()))
        lines[:] = [*source.splitlines(), ""]


def signature(app, what, name, obj, options, args, result):
    """Types without the marks of the library, and functions by their names."""
    marked = r"~?[\w.]*Annotated\[~?([\w.]+), ~?[\w.]*Shape\((?:[^()]|\([^()]*\))*\)\]"
    function = r"<function (?:[\w.]*\.)?(\w+)(?: at 0x\w+)?>"
    texts = (text and re.sub(marked, r"\1", text) for text in (args, result))
    return tuple(text and re.sub(function, r"\1", text) for text in texts)


def as_prose(app, what, name, obj, options, lines):
    """Sentences of a docstring are plain: `*` and `|` mark nothing outside code and formulas.

    The bullets of napoleon, as in "* **UserWarning** -- ...", stay bullets.
    """
    formula = False
    for i, line in enumerate(lines):
        inside = formula and (not line or line.startswith("   "))
        formula = ".. math::" in line or inside
        if not formula and not line.lstrip().startswith((">>>", "...", "..")):
            lines[i] = prose(line)


def prose(line):
    plain = r"(`[^`]*`)|((?<![*])[*|](?![*]| \*\*))"
    line = line.replace(" . ", " \N{MIDDLE DOT} ")  # a product does not end a sentence
    return re.sub(plain, lambda m: m[1] or "\\" + m[2], line)


def setup(app):
    app.add_source_suffix(".ipynb", "ipynb")
    app.add_source_parser(Notebook)
    app.add_transform(Links)
    app.add_directive("command-line", CommandLine)
    app.add_html_math_renderer("mathml", (inline_formula, None), (block_formula, None))
    app.connect("builder-inited", write_reference)
    app.connect("builder-inited", thumbnails)
    app.connect("env-get-outdated", every_page)
    app.connect("source-read", read)
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-docstring", first_words)
    app.connect("autodoc-process-docstring", fields, priority=600)  # after napoleon
    app.connect("autodoc-process-docstring", as_prose, priority=900)
    app.connect("autodoc-process-signature", signature)
