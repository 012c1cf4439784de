"""What is shipped: one version, light imports, no folder that shadows another package."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def toml(path: str) -> dict:
    return tomllib.loads((ROOT / path).read_text(encoding="utf-8"))


def test_one_version():
    import hornbook
    import hornbook_kernels
    from hornbook import _core

    version = toml("Cargo.toml")["workspace"]["package"]["version"]
    assert hornbook.__version__ == version
    assert _core.__version__ == version
    assert hornbook_kernels.__version__ == version
    assert toml("kernels/pyproject.toml")["project"]["version"] == version
    extras = toml("pyproject.toml")["project"]["optional-dependencies"]
    assert f"hornbook-kernels=={version}" in extras["train"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_import_is_light():
    code = (
        "import sys, hornbook; "
        "heavy = {'torch', 'pyarrow', 'numpy', 'rich', 'cyclopts', 'sklearn'}; "
        "found = sorted(heavy & set(sys.modules)); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_planning_loads_no_torch():
    code = (
        "import sys; from hornbook import cli, estimate, pipeline, recipe, steps; "
        "steps.plan(recipe.load('demo')); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_kernels_folder_shadows_nothing():
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_function_survives_import_of_module_of_same_name():
    code = (
        "import hornbook, hornbook.dedup; import hornbook.diversity; "
        "assert callable(hornbook.dedup) and callable(hornbook.diversity)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_package_folder_is_a_package():
    folders = {path.parent for path in (ROOT / "python" / "hornbook").rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_no_absolute_paths_of_a_machine():
    pattern = re.compile(r"(^|[^A-Za-z0-9_.])/(home|root|work)/")
    sources = [
        p for f in ("python", "kernels", "rust", "benchmarks") for p in (ROOT / f).rglob("*")
    ]
    for path in sources:
        if path.suffix in (".py", ".rs", ".toml", ".json", ".md"):
            assert not pattern.search(path.read_text(encoding="utf-8")), path
