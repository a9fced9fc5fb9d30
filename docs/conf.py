"""Sphinx configuration. Builds without a network: inventories of other projects are kept in docs/inventories."""

import importlib
import inspect
import shutil
import tomllib
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.ext.napoleon import NumpyDocstring
from sphinx.util import logging

HERE = Path(__file__).parent
logger = logging.getLogger(__name__)

# The notebooks live at the top of the repository; Sphinx only reads what is in its own folder.
(HERE / "tutorials").mkdir(exist_ok=True)
for notebook in (HERE.parent / "tutorials").glob("*.ipynb"):
    shutil.copy2(notebook, HERE / "tutorials" / notebook.name)
shutil.copytree(HERE.parent / "tutorials" / "images", HERE / "tutorials" / "images", dirs_exist_ok=True)

info = metadata("celler")
URLS = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
project = "Celler"
author = "Celler developers"
copyright = f"2026, {author}"
version = release = info["Version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "inventories", "**.ipynb_checkpoints"]

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"  # no room for "Celler." before each method

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # a tutorial is committed with its output
nb_merge_streams = True

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "unsrt"
bibtex_reference_style = "author_year"

html_theme = "sphinx_book_theme"
html_math_renderer = "mathml"
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_logo = "_static/logo.svg"
html_favicon = "_static/logo.svg"
html_baseurl = f"{URLS['Documentation']}/en/stable/"
# Named, since the theme's script reports a mode without a name as an error in the console.
html_context = {"default_mode": "auto"}
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "navbar_persistent": [],  # the search stands in the side bar already
    "logo": {"alt_text": "Celler: start page", "text": html_title},
    "path_to_docs": "docs",
    "repository_branch": "main",
    "repository_url": URLS["Source"],
    "use_edit_page_button": True,
    "use_issues_button": True,
    "use_repository_button": True,
}

# Links to other projects, whose objects are listed in one file.
PROJECTS = tomllib.loads((HERE / "inventories" / "objects.toml").read_text("utf-8"))
intersphinx_mapping = {name: (project["url"] + "/", f"inventories/{name}.inv") for name, project in PROJECTS.items()}
intersphinx_disabled_reftypes = []
OBJECTS = [
    entry.rpartition(":")[2]
    for project in PROJECTS.values()
    for objects in project["pages"].values()
    for entry in objects
]
ABBREVIATIONS = {"np": "numpy", "pd": "pandas", "sc": "scanpy"}

# A name that leads nowhere is an error.
nitpicky = True
nitpick_ignore_regex = [
    # What a data module hands to scvi-tools' loops has no page.
    (r"py:class", r"(celler\.atlas\.\w+\.)?CellBlocks"),
    # The default of load_query_data's options: what the reference model has.
    (r"py:class", r"(celler\.model\.\w+\.)?OfReference"),
    # What the ablation's rivals have in common.
    (r"py:class", r"(celler\.benchmark\.\w+\.)?Adjustment"),
    # What Celler.adapt gives, and says there.
    (r"py:class", r"celler\.inference\._adaptation\.Adaptation"),
    # Aliases of types, and the type of celler.losses.DEFAULT, as autodoc shortens them.
    (r"py:class", r"GInf|HDM|Predict|dict\[str"),
]

# A docstring has no types, they stand in the signature. Napoleon would take the first line of "Returns" for one,
# and what precedes a colon in the text of an attribute.
napoleon_google_docstring = False
napoleon_use_rtype = False
NumpyDocstring._consume_returns_section = lambda self, preprocess_types=False: [
    ("", "", self._dedent(self._consume_to_next_section()))
]
NumpyDocstring._consume_inline_attribute = lambda self: (
    "",
    NumpyDocstring(self._dedent(self._consume_to_end()), self._config).lines(),
)


def find_public_name(app: Any, env: Any, node: Any, content: Any) -> None:
    """Give an annotation the name under which the object is documented.

    ``AnnData``, ``pd.DataFrame`` and ``pandas.core.frame.DataFrame`` are what the source or the object itself has.
    """
    package, _, name = node.get("reftarget", "").partition(".")
    package = ABBREVIATIONS.get(package, package)
    short = name.rpartition(".")[2] or package
    for full in OBJECTS:
        if full.rpartition(".")[2] == short and (not name or full.startswith(f"{package}.")):
            node["reftarget"] = full
            return


def is_protocol(obj: Any) -> bool:
    """Whether a class only says what others are like; nobody calls it."""
    return inspect.isclass(obj) and getattr(obj, "_is_protocol", False)


def hide_protocol_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, None] | None:
    """A protocol's is (*args, **kwargs), which says nothing."""
    return ("", None) if is_protocol(obj) else None


def skip_member(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what has no text of its own, and what scvi-tools' class offers and Celler cannot do."""
    no_text = (inspect.getdoc(obj) or "").startswith("Alias for field number")
    return True if no_text or name == "setup_annbatch" else None


def describe_outputs(app: Any, doctree: Any) -> None:
    """Describe the pictures of a notebook by the last line of their code, for readers who hear the page."""
    for cell in doctree.findall(lambda node: isinstance(node, nodes.container) and "cell" in node["classes"]):
        code = next(cell.findall(nodes.literal_block), None)
        for image in cell.findall(nodes.image):
            if code is not None and not image.get("alt"):
                image["alt"] = f"Output of {code.astext().strip().splitlines()[-1]}"


def shorten_title(app: Any, doctree: Any) -> None:
    """Leave out the module in the side bar, which names it above, and where long names break."""
    page = app.env.docname
    if page.startswith("generated/"):
        link = next(iter(app.env.tocs[page].findall(nodes.reference)))
        link.children = [nodes.Text(page.rpartition(".")[2])]


def find_source(app: Any, pagename: str, templatename: str, context: Any, doctree: Any) -> None:
    """Let the edit button lead to the file that a page is written in, where that is not the page's own."""
    if pagename.startswith("tutorials/"):
        path = f"{pagename}.ipynb"
    elif pagename.startswith("generated/"):
        path = source_of(pagename.removeprefix("generated/"))
    elif pagename == "changelog":
        path = "CHANGELOG.md"
    elif pagename == "user_guide/base_card":
        path = "celler/network/base_card.md"
    else:
        return
    context["get_edit_provider_and_url"] = lambda: ("GitHub", f"{URLS['Source']}/edit/main/{path}")


def source_of(name: str) -> str:
    """Return the file in which a public object is written."""
    module, _, attribute = name.rpartition(".")
    obj = inspect.unwrap(getattr(importlib.import_module(module), attribute))
    file = inspect.getsourcefile(obj) if inspect.isroutine(obj) or inspect.isclass(obj) else None
    package = Path(importlib.import_module("celler").__file__ or "").parent
    return str(Path(file or inspect.getsourcefile(importlib.import_module(module)) or "").relative_to(package.parent))


def write_mathml(translator: Any, node: Any) -> None:
    """Write a formula as MathML, which browsers draw themselves: a page asks no network for a script."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    formula = convert(node.astext(), display=display)
    if "&#x0005C;" in formula or "\\" in formula:
        logger.warning("latex2mathml does not know a command in: %s", node.astext(), location=node)
    formula = formula.replace("<mi>log</mi>", '<mi>log</mi><mspace width="0.17em"/>')
    if display == "block":
        formula = f'<div class="math notranslate">{formula}</div>'
    translator.body.append(formula)
    raise nodes.SkipNode


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (write_mathml, None), (write_mathml, None))
    app.connect("missing-reference", find_public_name, priority=400)  # before intersphinx
    app.connect("autodoc-process-signature", hide_protocol_signature)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("doctree-read", describe_outputs)
    app.connect("doctree-read", shorten_title, priority=600)  # after Sphinx has read the contents
    # the theme sets the address before, and makes its buttons after
    app.connect("html-page-context", find_source, priority=501)
