"""Checksums name what differs."""

import subprocess
from pathlib import Path

import pytest

from llm.config import ConfigError
from llm.export.verify import main, release_hash, verify, write_sums


@pytest.fixture
def release(tmp_path: Path) -> Path:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf/model.gguf").write_bytes(b"weights")
    (tmp_path / "release.json").write_text("{}")
    write_sums(tmp_path)
    return tmp_path


def test_untouched_release_passes(release: Path, capsys: pytest.CaptureFixture[str]):
    assert verify(release) == []
    assert main([str(release)]) == 0
    assert "2 files agree" in capsys.readouterr().out


def test_sha256sum_reads_the_same_file(release: Path):
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=release, check=False)
    assert done.returncode == 0


def test_each_difference_is_named(release: Path, capsys: pytest.CaptureFixture[str]):
    (release / "gguf/model.gguf").write_bytes(b"weightz")
    (release / "release.json").unlink()
    (release / "extra.txt").write_text("x")
    expected = ["release.json (missing)", "extra.txt (not listed)", "gguf/model.gguf (changed)"]
    assert verify(release) == expected
    assert main([str(release)]) == 1
    assert capsys.readouterr().err.splitlines() == expected


def test_folder_without_sums_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ConfigError, match="no such file"):
        verify(tmp_path)
    assert main([str(tmp_path)]) == 1
    assert main([]) == 2
    (tmp_path / "SHA256SUMS").write_text("nonsense\n")
    with pytest.raises(ConfigError, match="SHA256SUMS:1"):
        verify(tmp_path)


def test_fingerprint_follows_content_and_names(release: Path):
    first = release_hash(release)
    assert len(first) == 16
    (release / "gguf/model.gguf").rename(release / "gguf/other.gguf")
    assert release_hash(release) != first
    (release / "gguf/other.gguf").rename(release / "gguf/model.gguf")
    assert release_hash(release) == first
    (release / "release.json").write_text("{ }")
    assert release_hash(release) != first
