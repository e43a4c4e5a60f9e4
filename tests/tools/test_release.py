"""The wheel and the source distribution, each installed into an empty environment and used."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import wds

ROOT = Path(__file__).parents[2]


def output(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    output(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ".")
    return folder


def one(folder: Path, pattern: str) -> Path:
    [found] = folder.glob(pattern)
    return found


@pytest.fixture(scope="module", params=["*.whl", "*.tar.gz"])
def python(request, dist, tmp_path_factory) -> Path:
    """Install a distribution and whatever it asks for, and nothing else; its interpreter."""
    home = tmp_path_factory.mktemp("empty")
    output(sys.executable, "-m", "venv", home)
    output(home / "bin" / "python", "-m", "pip", "install", "-q", one(dist, request.param))
    return home / "bin" / "python"


def test_distributions_both_have_the_version_of_the_package(dist):
    assert one(dist, "*.whl").name == f"wds-{wds.__version__}-py3-none-any.whl"
    assert one(dist, "*.tar.gz").name == f"wds-{wds.__version__}.tar.gz"


def test_version_is_written_once_and_the_manifests_follow_it():
    assert "dynamic = [" in (ROOT / "pyproject.toml").read_text()
    kustomization = yaml.safe_load((ROOT / "deploy/kubernetes/kustomization.yaml").read_text())
    assert kustomization["images"][0]["newTag"] == wds.__version__


def test_wheel_holds_only_the_package_its_licence_and_py_typed(dist):
    names = zipfile.ZipFile(one(dist, "*.whl")).namelist()
    assert "wds/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"wds", f"wds-{wds.__version__}.dist-info"}
    modules = {path.name for path in (ROOT / "src" / "wds").glob("*.py")}
    assert modules == {Path(name).name for name in names if re.fullmatch(r"wds/\w+\.py", name)}


def test_source_distribution_holds_its_build_inputs_and_no_secret(dist):
    with tarfile.open(one(dist, "*.tar.gz")) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "src/wds/__main__.py",
    } <= names
    assert not any(Path(name).name == ".env" for name in names)


def test_changelog_has_this_version_as_its_newest_release():
    text = (ROOT / "CHANGELOG.md").read_text()
    releases = re.findall(r"^## \[(\d\S*)\] - \d{4}-\d\d-\d\d$", text, re.MULTILINE)
    assert releases[0] == wds.__version__


def test_script_and_module_print_the_same_in_an_empty_environment(python, tmp_path):
    said = f"wds {wds.__version__}\n"
    assert output(python.parent / "wds", "--version", cwd=tmp_path) == said
    assert output(python, "-m", "wds", "--version", cwd=tmp_path) == said
    assert "dispatcher" in output(python.parent / "wds", "--help", cwd=tmp_path)
    output(python, "-m", "pip", "check", cwd=tmp_path)


def test_up_without_the_embedded_engines_says_what_to_install(python, tmp_path):
    env = {"WDS_HMAC_SECRET": "s", "PATH": str(python.parent)}
    done = subprocess.run(
        [python, "-m", "wds", "up"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "wds[embedded]" in done.stderr
    assert "Traceback" not in done.stderr


def test_types_of_the_installed_package_are_seen_by_its_users(python, tmp_path):
    (tmp_path / "user.py").write_text(
        "from wds.signing.hmac_sha256 import sign\nvalue: int = sign('secret', b'body')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-executable", python, "user.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert 'expression has type "str", variable has type "int"' in done.stdout


def test_code_needs_no_newer_python_than_it_declares():
    said = output(
        Path(sys.prefix) / "bin" / "vermin", "--no-tips", "-t=3.11-", "--violations", "src"
    )
    assert "Minimum required versions: 3.11" in said


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_types_hold_for_every_declared_python(version):
    output(sys.executable, "-m", "mypy", "--python-version", version)
