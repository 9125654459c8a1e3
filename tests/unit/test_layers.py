"""flows -> tasks -> mlcd_core, never back; nothing heavy at import; the core needs neither Prefect nor Ray."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
MAY_NOT_IMPORT = {
    "mlcd_core": {"prefect", "ray", "tasks", "flows"},
    "tasks": {"flows"},
    "flows": {"ray", "torch", "faiss", "open_clip"},
}
HEAVY = {"torch", "ray", "faiss", "open_clip", "sklearn", "matplotlib", "torchvision"}
# of the core, flows may know only what is asked for, not how it is done
FLOWS_MAY_KNOW = {"mlcd_core.specs", "mlcd_core.runtimes", "mlcd_core.errors"}


def imports(path: Path) -> list[tuple[str, bool]]:
    """Every imported module of a file, and whether it is imported when the file is."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names if _is_module(node.module, alias.name)]
            found += [(name, id(node) in top) for name in submodules or [node.module]]
    return found


def _is_module(package: str, name: str) -> bool:
    folder = REPO.joinpath(*package.split("."))
    return (folder / f"{name}.py").is_file() or (folder / name).is_dir()


def files(package: str) -> list[Path]:
    return sorted((REPO / package).rglob("*.py"))


@pytest.mark.parametrize("package", MAY_NOT_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    wrong = [
        f"{path.relative_to(REPO)}: {module}"
        for path in files(package)
        for module, _ in imports(path)
        if module.split(".")[0] in MAY_NOT_IMPORT[package]
    ]
    assert wrong == []


def test_flows_know_only_specs_runtimes_and_errors_of_the_core() -> None:
    known = {module for path in files("flows") for module, _ in imports(path) if module.startswith("mlcd_core")}
    assert known <= FLOWS_MAY_KNOW


def test_no_two_modules_of_the_core_import_each_other_at_the_top() -> None:
    graph: dict[str, set[str]] = {}
    for path in files("mlcd_core"):
        name = ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = {module for module, top in imports(path) if top and module.startswith("mlcd_core")}
    pairs = [(a, b) for a in graph for b in graph[a] if a < b and a in graph.get(b, set())]
    assert pairs == []


def loaded_after(code: str) -> set[str]:
    script = f"import sys; {code}; print(*sorted(name.split('.')[0] for name in sys.modules))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPO)
    return set(printed.stdout.split())


def test_importing_the_flows_loads_nothing_heavy() -> None:
    assert loaded_after("import flows.pipeline") & HEAVY == set()


def test_planning_stages_loads_neither_prefect_nor_anything_heavy() -> None:
    code = "import tasks.rounds; from tasks import cluster, embed, evaluate, label, train"
    assert loaded_after(code) & (HEAVY | {"prefect"}) == set()


def test_a_stage_as_a_job_needs_no_prefect() -> None:
    assert loaded_after("import tasks.stage_job") & (HEAVY | {"prefect"}) == set()


def test_help_needs_neither_prefect_nor_pydantic() -> None:
    code = "import flows.command as c\ntry: c.main(['--help'])\nexcept SystemExit: pass"
    script = f"import sys\n{code}\nprint(*sorted(name.split('.')[0] for name in sys.modules))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPO)
    assert set(printed.stdout.split()) & (HEAVY | {"prefect", "pydantic", "numpy", "pyarrow"}) == set()


def test_the_core_imports_without_prefect_ray_and_the_optional_libraries() -> None:
    blocked = "for n in ('prefect','ray','faiss','open_clip','sklearn','matplotlib'): sys.modules[n] = None"
    loaded_after(f"exec({blocked!r}); import mlcd_core.kmeans, mlcd_core.train.loop, mlcd_core.labels, mlcd_core.store")
