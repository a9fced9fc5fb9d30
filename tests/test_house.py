"""The house rules: floors, sizes, who may import what, one version, every public name documented."""

import ast
import graphlib
import importlib
import importlib.metadata
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "celler"
FLOORS = {
    "_utils": 0,
    "metrics": 1,
    **dict.fromkeys(["losses", "mining", "labels", "network", "datasets", "tl"], 2),
    **dict.fromkeys(["data", "pl"], 3),
    **dict.fromkeys(["inference", "training", "atlas", "pp", "report"], 4),
    **dict.fromkeys(["model"], 5),
    **dict.fromkeys(["benchmark"], 6),
    **dict.fromkeys(["cli"], 7),
}
#: Rooms on a higher floor of which a face hands names on, for users alone and on first use.
HANDED_DOWN = {"celler/tl/__init__.py": {"report"}}
MAX_LINES, MAX_BODY, MAX_PARAMETERS = 400, 40, 13
#: `train` and `predict` keep scANVI's parameters beside their own, `marker_bubble` those of `scanpy.pl.dotplot`.
WIDE = {"train": 19, "predict": 16, "marker_bubble": 20}
MAX_PRIVATE = 7
#: What the plans of training and of pretraining differ in.
WIDE_PRIVATE = {"run_plan"}
# Documented by scvi-tools for those who build on BaseModelClass, although their names start with "_".
ALLOWED_PRIVATE = {"_get_setup_method_args", "_get_init_params"}

FILES = sorted(PACKAGE.rglob("*.py"))
ROOM_FILES = [path for path in FILES if path != PACKAGE / "__init__.py"]
TEST_FILES = sorted((ROOT / "tests").rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), name_of(path))


def imports_of(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """(module, name taken from it or "", name it is bound to) of each import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, "", alias.asname or alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the whole module name"
            for alias in node.names:
                yield node.module or "", alias.name, alias.asname or alias.name


def rooms_imported_by(path: Path) -> set[str]:
    modules = (module.split(".") for module, _, _ in imports_of(parse(path)))
    return {parts[1] for parts in modules if parts[0] == "celler" and len(parts) > 1}


def functions_of(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_the_package_has_rooms():
    assert ROOM_FILES, f"no modules under {PACKAGE}"


@pytest.mark.parametrize("path", ROOM_FILES, ids=name_of)
def test_imports_only_from_a_lower_floor(path):
    room = room_of(path)
    assert room in FLOORS, f"{name_of(path)}: give the room {room!r} a floor"
    for other in rooms_imported_by(path) - {room} - HANDED_DOWN.get(name_of(path), set()):
        assert other in FLOORS, f"{name_of(path)} imports celler.{other}, which has no floor"
        assert FLOORS[other] < FLOORS[room], (
            f"{name_of(path)} (floor {FLOORS[room]}) imports celler.{other} (floor {FLOORS[other]})"
        )


def test_what_a_face_hands_down_is_loaded_on_first_use():
    """So no file of a lower floor, which loads the face of the room that it imports from, stands on it."""
    for face, rooms in HANDED_DOWN.items():
        names = ", ".join(module_of(path) for path in (ROOT / face).parent.glob("_*.py"))
        loaded = f"[room for room in {rooms} if f'celler.{{room}}' in sys.modules]"
        code = f"import sys, {names}; print({loaded}, celler.tl.report.__name__, {loaded})"
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.split() == ["[]", "report", str(list(rooms))]


@pytest.mark.parametrize("path", ROOM_FILES, ids=name_of)
def test_does_not_import_the_face(path):
    for module, name, bound in imports_of(parse(path)):
        # `import celler.losses` binds the name `celler`, which is the face
        is_face = module == "celler" or (not name and bound == "celler")
        assert not is_face, f"{name_of(path)} imports the face: write `from celler.<room> import ...`"


def code_lines(path: Path) -> int:
    """Lines that hold code: neither blank, nor a comment, nor part of a docstring."""
    text = path.read_text(encoding="utf-8")
    of_docs = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if ast.get_docstring(node, clean=False) is not None and first is not None:
                of_docs |= set(range(first.lineno, (first.end_lineno or 0) + 1))
    lines = enumerate(map(str.strip, text.splitlines()), start=1)
    return sum(bool(line) and line[0] != "#" and n not in of_docs for n, line in lines)


@pytest.mark.parametrize("path", [*FILES, *TEST_FILES], ids=name_of)
def test_file_size(path):
    """A file is as long as the thing it holds: the class is one thing."""
    if path != PACKAGE / "model" / "_celler.py":
        assert code_lines(path) <= MAX_LINES, f"{name_of(path)}: one thing or two?"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_fit_a_screen(path):
    for function in functions_of(parse(path)):
        where = f"{name_of(path)}:{function.lineno} {function.name}"
        body = function.body
        if ast.get_docstring(function, clean=False) is not None:
            body = body[1:]
        n_lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
        assert n_lines <= MAX_BODY, f"{where}: a body of {n_lines} lines"

        arguments = function.args
        parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        parameters += [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
        names = [parameter.arg for parameter in parameters if parameter.arg not in ("self", "cls")]
        n_most = WIDE.get(function.name, MAX_PARAMETERS)
        assert len(names) <= n_most, f"{where}: {len(names)} parameters"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def modules_imported_by(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever the import stands, without faces."""
    found = {f"{module}.{name}" for module, name, _ in imports_of(parse(path))}
    found |= {module for module, _, _ in imports_of(parse(path))}
    return {name for name in found & MODULES.keys() if MODULES[name].name != "__init__.py"}


def test_private_functions_take_few_parameters():
    public = {name.rsplit(".", 1)[1] for name in public_names()}
    wide = [
        f"{name_of(path)}:{node.lineno} {node.name}"
        for path in FILES
        for node in parse(path).body
        if isinstance(node, ast.FunctionDef)
        and node.name not in public | WIDE_PRIVATE
        and len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs) > MAX_PRIVATE
    ]
    assert wide == []


def test_no_import_circle():
    """Neither one that runs nor one for type checkers alone."""
    sorter = graphlib.TopologicalSorter(
        {module_of(path): modules_imported_by(path) for path in FILES if path.stem != "__init__"}
    )
    sorter.prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("start", ["pl", "tl"])
def test_plots_and_tools_never_import_torch(start):
    """Neither themselves nor through the files they import."""
    seen: set[str] = set()
    waiting = {module_of(path) for path in ROOM_FILES if room_of(path) == start}
    while waiting:
        path = MODULES[waiting.pop()]
        seen.add(module_of(path))
        modules = {module.split(".")[0] for module, _, _ in imports_of(parse(path))}
        heavy = modules & {"torch", "lightning", "scvi"}
        assert not heavy, f"{start} reaches {name_of(path)}, which imports {heavy}"
        waiting |= modules_imported_by(path) - seen


def test_no_free_function_takes_self():
    """A worker takes what it needs: arrays, a frozen state, never the model."""
    found = [
        f"{name_of(path)}:{node.lineno} {node.name}"
        for path in FILES
        for node in parse(path).body
        if isinstance(node, ast.FunctionDef)
        and (node.args.posonlyargs + node.args.args)[:1]
        and (node.args.posonlyargs + node.args.args)[0].arg in ("self", "cls")
    ]
    assert found == []


def test_the_top_of_the_package_is_small():
    entries = [path for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "py.typed")]
    assert len(entries) <= 19


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in ALLOWED_PRIVATE


def private_names_used(tree: ast.Module) -> Iterator[str]:
    """Private names of other packages: imported, or reached through something imported from them."""
    foreign = set()
    for module, name, bound in imports_of(tree):
        if module.split(".")[0] in ("celler", "__future__"):
            continue
        foreign.add(bound)
        if any(map(is_private, [*module.split("."), name])):
            yield f"{module}.{name}".removesuffix(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            base = node.value
            while isinstance(base, ast.Attribute):
                base = base.value
            if isinstance(base, ast.Name) and base.id in foreign:
                yield ast.unparse(node)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_private_names_of_dependencies(path):
    assert list(private_names_used(parse(path))) == []


def test_private_names_are_found():
    source = """
        import numpy as np
        import scvi.data._utils
        from scvi.model import _multivi
        from celler.losses import _own
        np.core._methods.x, np._globals, np.__version__, self._own, _own._x
        scvi.model.base.BaseModelClass._get_init_params
    """
    tree = ast.parse("\n".join(line.strip() for line in source.splitlines()))
    expected = ["np._globals", "np.core._methods", "scvi.data._utils", "scvi.model._multivi"]
    assert sorted(private_names_used(tree)) == expected


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert importlib.metadata.version("celler") == project["version"]
    assert importlib.import_module("celler").__version__ == project["version"]
    for path in FILES:
        assert f'"{project["version"]}"' not in path.read_text(encoding="utf-8"), name_of(path)


@pytest.mark.parametrize(
    "statement",
    [
        "import celler",
        "import celler; dir(celler); celler.__version__",
        "import celler.cli._main",
        "import celler.cli._main\ntry: celler.cli._main.main(['--help'])\nexcept SystemExit: pass",
    ],
    ids=["import", "dir", "cli", "help"],
)
def test_starting_does_not_import_what_is_heavy(statement):
    """`celler --help` answers at once because nothing here imports torch, scvi-tools or scanpy."""
    heavy = ["torch", "lightning", "scvi", "scanpy", "anndata", "numba", "pandas", "sklearn"]
    code = f"{statement}\nimport sys\nprint('loaded:', *(m for m in {heavy} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]


def documented_names() -> set[str]:
    """Full names in the autosummary tables and auto directives of docs/api."""
    pages = sorted((ROOT / "docs" / "api").glob("*.md"))
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    names, module, in_table = set(), "", False
    for line in map(str.strip, text.splitlines()):
        if match := re.match(r"(?:\.\. |```\{)(?:py:)?currentmodule(?:::|\}) *([\w.]+)", line):
            module = match[1]
        elif match := re.match(r"(?:\.\. |```\{)auto(?!summary)\w+(?:::|\}) *([\w.]+)", line):
            names.add(f"{module}.{match[1]}")
        elif re.match(r"(?:\.\. |```\{)autosummary", line):
            in_table = True
        elif line.startswith("```"):
            in_table = False
        elif in_table and re.fullmatch(r"[\w.]+", line):
            names.add(f"{module}.{line}")
    return {name if name.startswith("celler.") else f"celler{name}" for name in names}


def public_names() -> set[str]:
    """What the face hands on, down to the names of each room's ``__all__``."""
    celler = importlib.import_module("celler")
    names = set()
    for room_name in celler.__all__:
        room = getattr(celler, room_name)
        if not room_name.startswith("_"):
            names |= {f"celler.{room_name}.{name}" for name in getattr(room, "__all__", [])}
            assert hasattr(room, "__all__"), f"celler.{room_name} needs an __all__"
    return names


def test_every_public_name_is_documented():
    assert sorted(public_names() - documented_names()) == []


def test_every_documented_name_exists():
    names = documented_names()
    assert names, "docs/api names nothing"
    for full_name in sorted(names):
        module, _, name = full_name.rpartition(".")
        found = hasattr(importlib.import_module(module), name)
        assert found, f"docs/api documents {full_name}, which does not exist"


def public_callables() -> Iterator[tuple[str, object]]:
    """Public functions and classes, and the public methods that the classes define, by full name."""
    for full_name in sorted(public_names()):
        room, _, name = full_name.rpartition(".")
        thing = getattr(importlib.import_module(room), name)
        if not (inspect.isfunction(thing) or inspect.isclass(thing)):
            continue
        yield full_name, thing
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            function = getattr(value, "__func__", value)
            if inspect.isfunction(function) and not member.startswith("_") and function.__doc__:
                yield f"{full_name}.{member}", function


def described_parameters(docstring: str) -> set[str]:
    """Names under the headings Parameters and Attributes of a numpydoc docstring."""
    sections = re.split(r"\n\n([A-Z]\w+)\n-+\n", f"\n\n{docstring}")
    names = set()
    for heading, section in zip(sections[1::2], sections[2::2], strict=True):
        if heading in ("Parameters", "Attributes"):
            entries = [line for line in section.splitlines() if line and not line.startswith(" ")]
            names |= {name.strip("* ") for line in entries for name in line.split(",")}
    return names


def test_public_parameters_are_described_in_numpydoc():
    """Every parameter of a public function has an entry, or stands with its shape in the text of a small method."""
    missing = {}
    for name, thing in public_callables():
        docstring = inspect.getdoc(thing) or ""
        parameters = set(inspect.signature(thing).parameters) - {"self", "cls", "args", "kwargs"}
        is_short = "\n" not in docstring.strip() or (len(parameters) < 2 and inspect.isclass(thing))
        described = described_parameters(docstring) | set(re.findall(r"``(\w+)", docstring))
        lacking = parameters - described
        if lacking and not is_short:
            missing[name] = sorted(lacking)
    assert missing == {}
