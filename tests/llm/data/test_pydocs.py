"""The embedded corpus is read from recorded files, is the same on every run, and holds no path of this machine."""

import sys
import sysconfig
from pathlib import Path

import pytest

from llm.config import ConfigError
from llm.data.builtin.pydocs import build_documents, list_locked, list_stdlib, read_pydocs


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "requirements.lock"
    path.write_text(
        "# a comment\n--extra-index-url https://example.org/simple\npydantic==2.0  # via x\n"
        "torch==2.13.0+cpu\nnvidia-ml-py==1.0\nPyYAML==6.0\nno-such-package==1 ; sys_platform == 'win32'\n"
    )
    return path


def test_modules_are_those_of_the_lock_without_platform_packages(lock: Path) -> None:
    modules = list(list_locked(lock))
    assert {module.package for module in modules} == {"pydantic", "pyyaml"}
    assert {module.license for module in modules} == {"MIT"}
    names = [module.name for module in modules]
    assert "pydantic.main" in names
    assert "yaml" in names
    assert not [name for name in names if "test" in name.split(".")]


def test_standard_library_modules_are_packages_of_their_own() -> None:
    modules = list(list_stdlib())
    packages = {module.package for module in modules}
    assert {"python/json", "python/asyncio", "python/os"} <= packages
    assert not {"python/test", "python/idlelib", "python/site-packages"} & packages
    assert {m.name for m in modules if m.package == "python/json"} >= {"json", "json.decoder"}


def test_the_sample_is_the_same_whatever_the_number_of_processes(lock: Path) -> None:
    one = read_pydocs(lock, 0.05, 1)
    assert one == read_pydocs(lock, 0.05, 2)
    assert len(one) > 10
    fewer = {(module.package, module.name) for module in read_pydocs(lock, 0.02, 1)}
    assert fewer < {(module.package, module.name) for module in one}


def test_documents_name_what_they_describe_and_no_path(lock: Path) -> None:
    documents = build_documents(read_pydocs(lock, 0.05, 1), "pydocs")
    assert any(one.text.startswith("class ") for one in documents)
    assert any(one.text.startswith("module ") for one in documents)
    paths = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sys.prefix)
    for one in documents:
        fields = (one.id, one.source, one.license, one.url, one.meta, one.group)
        assert not [path for path in paths if any(path in field for field in fields)]


def test_a_package_that_is_not_installed_is_named(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text("no-such-package==1\n")
    with pytest.raises(ConfigError, match="no-such-package, which is not installed"):
        list(list_locked(tmp_path / "requirements.lock"))
