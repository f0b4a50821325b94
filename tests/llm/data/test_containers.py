"""Files, folders, globs, URLs, compression and nested archives; and what is rejected on the way to a plain file."""

import io
import os
import socket
import tarfile
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import pytest

from llm.config import ConfigError
from llm.data.schema import BadRecord
from llm.data.sources import containers
from llm.data.sources.containers import unpack, walk_source
from llm.data.sources.expansion import SLACK_BYTES, Budget, Unpacked
from llm.data.sources.items import Fault, Skip
from llm.data.sources.readers.text import PART_BYTES
from tests.llm.data.sample_files import COMPRESS, make_jsonl, make_tar, make_zip

Found = dict[str, bytes | Fault | Skip]


def collect(opened) -> Found:
    found: Found = {}
    for name, stream in opened:
        if isinstance(stream, Fault | Skip):
            found[name] = stream
            continue
        try:
            found[name] = stream.read()
        except BadRecord as error:
            found[name] = Fault(0, error.reason, error.detail)
    return found


def walk(path: Path | str, ratio: float = 200.0) -> Found:
    return collect(walk_source(str(path), ratio))


def open_bytes(name: str, content: bytes, ratio: float = 200.0) -> Found:
    return collect(unpack(name, io.BufferedReader(io.BytesIO(content)), Budget(lambda: len(content), ratio)))


def reasons(found: Found) -> dict[str, str]:
    return {name: one.reason for name, one in found.items() if isinstance(one, Fault)}


def test_folders_are_walked_in_order_without_dot_files(tmp_path: Path) -> None:
    (tmp_path / "b/deep").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for name in ("z.md", "b/deep/a.TXT", "b/rows.jsonl", "page.html", ".dot", ".hidden/x.txt", "a.txt"):
        (tmp_path / name).write_text("text")
    assert list(walk(tmp_path)) == ["a.txt", "b/deep/a.TXT", "b/rows.jsonl", "page.html", "z.md"]


def test_globs_and_single_files(tmp_path: Path) -> None:
    for name in ("one.txt", "two.txt", "three.md"):
        (tmp_path / name).write_text(name)
    assert walk(f"{tmp_path}/*.txt") == {"one.txt": b"one.txt", "two.txt": b"two.txt"}
    assert walk(f"{tmp_path}/three.md") == {"three.md": b"three.md"}
    assert walk(f"file://{tmp_path}/three.md") == {"three.md": b"three.md"}


@pytest.mark.parametrize("name", ["missing", "missing/*.txt", "empty"])
def test_where_nothing_is_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=name.replace("*", r"\*")):
        walk(tmp_path / name)


def test_urls_of_any_driver(tmp_path: Path) -> None:
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe({"/mill/b.txt": b"two", "/mill/deep/a.txt.gz": COMPRESS["gz"](b"one"), "/mill/.dot/x.txt": b"no"})
    try:
        assert walk("memory://mill") == {"b.txt": b"two", "deep/a.txt.gz": b"one"}
        assert walk("memory://mill/b.txt") == {"b.txt": b"two"}
        assert walk("memory://mill/*.txt") == {"b.txt": b"two"}
        with pytest.raises(ConfigError, match="memory://mill/none"):
            walk("memory://mill/none")
    finally:
        filesystem.rm("/mill", recursive=True)


def test_a_web_address_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(COMPRESS["gz"](b"one"))
    (tmp_path / "a.zip").write_bytes(make_zip({"b/c.txt": b"two"}))  # read from its end

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        assert walk(f"{root}/a.txt.gz?raw=1") == {"a.txt.gz": b"one"}
        assert walk(f"{root}/a.zip") == {"a.zip/b/c.txt": b"two"}
        assert reasons(walk(f"{root}/none.txt")) == {"none.txt": "unreadable"}
        server.shutdown()


def test_a_missing_driver_names_its_package() -> None:
    with pytest.raises(ConfigError, match=r"no driver for dropbox:// .*dropboxdrivefs"):
        walk("dropbox://folder/a.txt")
    with pytest.raises(ConfigError, match=r"Protocol not known: nosuch.*fsspec knows"):
        walk("nosuch://folder/a.txt")


@pytest.mark.parametrize("kind", COMPRESS)
def test_compression_is_known_by_content_and_members_follow_each_other(kind: str) -> None:
    once = COMPRESS[kind](b"first\n")
    assert open_bytes("no-suffix", once) == {"no-suffix": b"first\n"}
    assert open_bytes("two", once + COMPRESS[kind](b"second\n")) == {"two": b"first\nsecond\n"}


@pytest.mark.parametrize("kind", COMPRESS)
def test_what_precedes_damage_is_given_first(kind: str) -> None:
    content = b"".join(os.urandom(50) + b"\n" for _ in range(40_000))
    found = unpack("x", io.BufferedReader(io.BytesIO(COMPRESS[kind](content)[:-100])), Budget(lambda: None, 200.0))
    _, stream = next(found)
    assert isinstance(stream, io.BufferedReader)
    read, error = bytearray(), None
    while error is None:
        try:
            read += stream.read1(1 << 16)
        except BadRecord as caught:
            error = caught
    assert error.reason == f"corrupt_{kind}"
    assert content.startswith(bytes(read))
    assert len(read) > len(content) - (1 << 20 if kind == "bz2" else 1 << 17)  # bz2 has blocks of 900 kB


def test_nested_archives_have_long_names() -> None:
    inner = make_zip({"b/c.txt": b"deep"})
    tar = COMPRESS["gz"](make_tar({"./in.zip": inner, "d.txt": b"flat"}))
    assert open_bytes("a.zip", make_zip({"t.tar.gz": tar, "rows.jsonl.xz": COMPRESS["xz"](make_jsonl())})) == {
        "a.zip/t.tar.gz/in.zip/b/c.txt": b"deep",
        "a.zip/t.tar.gz/d.txt": b"flat",
        "a.zip/rows.jsonl.xz": make_jsonl(),
    }


def test_nothing_is_extracted_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.zip").write_bytes(make_zip({"../out.txt": b"x", "in.tar": make_tar({"a.txt": b"a"})}))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    walk("in")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/etc/x.txt", "C:\\x.txt", "a\\..\\..\\x.txt"])
def test_names_that_lead_out_of_their_archive(name: str) -> None:
    found = open_bytes("a.zip", make_zip({name: b"bad", "good.txt": b"good"}))
    assert list(reasons(found).values()) == ["unsafe_name"]
    assert found["a.zip/good.txt"] == b"good"
    found = open_bytes("a.tar", make_tar({name: b"bad", "good.txt": b"good"}))
    assert list(reasons(found).values()) == ["unsafe_name"]
    assert found["a.tar/good.txt"] == b"good"


def test_links_in_archives() -> None:
    found = open_bytes("a.tar", make_tar({"link.txt": None, "good.txt": b"good"}))
    assert reasons(found) == {"a.tar/link.txt": "link"}
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        info = zipfile.ZipInfo("link.txt")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
        archive.writestr("good.txt", "good")
    found = open_bytes("a.zip", target.getvalue())
    assert reasons(found) == {"a.zip/link.txt": "link"}
    assert found["a.zip/good.txt"] == b"good"


def test_an_encrypted_member_is_rejected_alone() -> None:
    content = bytearray(make_zip({"secret.txt": b"secret", "good.txt": b"good"}))
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.find(mark) + flags] |= 1
    found = open_bytes("a.zip", bytes(content))
    assert reasons(found) == {"a.zip/secret.txt": "encrypted"}
    assert found["a.zip/good.txt"] == b"good"


def test_a_zip_bomb_is_rejected_and_its_neighbours_kept() -> None:
    found = open_bytes("a.zip", make_zip({"bomb.txt": b"0" * 30_000_000, "good.txt": os.urandom(200_000)}), ratio=100)
    assert reasons(found) == {"a.zip/bomb.txt": "zip_bomb"}
    assert len(found["a.zip/good.txt"]) == 200_000  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", COMPRESS)
def test_bombs_of_every_kind_are_known_early(kind: str) -> None:
    """Whatever follows them: a bomb hides in a large file. The first part of a long text has 16 MB."""
    rest = COMPRESS[kind](os.urandom(3_000_000))
    content = COMPRESS[kind](b"0" * 100_000_000) + rest
    opened = unpack("bomb", io.BufferedReader(io.BytesIO(content)), Budget(lambda: len(content), 200.0))
    _, stream = next(opened)
    assert isinstance(stream, io.BufferedReader)
    with pytest.raises(BadRecord, match="zip_bomb"):
        stream.read(PART_BYTES)


def test_a_member_that_lies_about_its_size() -> None:
    content = bytearray(make_zip({"bomb.txt": b"0" * 30_000_000}))
    for mark, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = content.find(mark) + place
        content[start : start + 4] = (100).to_bytes(4, "little")
    assert list(reasons(open_bytes("a.zip", bytes(content))).values()) == ["corrupt_zip"]  # it ends where it said


def test_many_small_members_are_a_bomb_together() -> None:
    """Overlapping members give each a harmless ratio; together they are petabytes."""
    found = open_bytes("a.zip", make_zip({f"{i}.txt": b"0" * 1_900_000 for i in range(4)}), ratio=10)
    assert isinstance(found["a.zip/0.txt"], bytes)
    assert reasons(found) == {"a.zip/1.txt": "zip_bomb", "a.zip": "zip_bomb"}


def test_layers_of_compression_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"0" * 30_000_000
    for _ in range(3):
        content = COMPRESS["gz"](content)
    assert reasons(open_bytes("a", content)) == {"a": "zip_bomb"}
    content = b"text"
    for _ in range(containers.MAX_DEPTH):
        content = COMPRESS["gz"](content)
    assert open_bytes("a", content) == {"a": b"text"}
    assert reasons(open_bytes("a", COMPRESS["gz"](content))) == {"a": "nested_too_deep"}
    monkeypatch.setattr(containers, "MAX_BUFFER_BYTES", 1000)
    zips = make_zip({"in.zip": make_zip({"a.txt": os.urandom(2000)})})
    assert reasons(open_bytes("a.zip", zips)) == {"a.zip/in.zip": "too_large"}


def test_what_is_no_plain_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.txt").write_text("text")
    (tmp_path / "folder").symlink_to(tmp_path / "sub")
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "empty.gz").write_bytes(COMPRESS["gz"](b""))
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        found = walk(tmp_path)
    assert reasons(found) == {
        "dangling.txt": "dangling_link",
        "empty.gz": "empty",
        "empty.txt": "empty",
        "loop.txt": "unreadable",
        "pipe.txt": "not_a_file",
        "socket": "not_a_file",
    }
    assert found["folder"] == Skip("link to a folder")
    assert found["sub/a.txt"] == b"text"


def test_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may list every folder")
    (tmp_path / "shut").mkdir(mode=0)
    (tmp_path / "a.txt").write_text("text")
    assert reasons(walk(tmp_path)) == {"shut": "unreadable"}


def test_damaged_archives_keep_what_came_before() -> None:
    members = {f"{i}.txt": os.urandom(2000) for i in range(10)}
    whole = make_zip(members)
    assert reasons(open_bytes("a.zip", whole[: len(whole) // 2])) == {"a.zip": "corrupt_zip"}
    hurt = bytearray(whole)
    hurt[whole.find(b"4.txt") + 100] ^= 0xFF
    assert reasons(open_bytes("a.zip", bytes(hurt))) == {"a.zip/4.txt": "corrupt_zip"}
    tar = make_tar(members)
    found = open_bytes("a.tar", tar[: 5 * 2560 + 700])
    assert [name for name, one in found.items() if isinstance(one, bytes)] == [f"a.tar/{i}.txt" for i in range(5)]
    assert set(reasons(found).values()) == {"corrupt_tar"}
    hurt = bytearray(tar)
    hurt[5 * 2560 + 150] ^= 0xFF  # the sixth header
    found = open_bytes("a.tar", bytes(hurt))
    assert reasons(found) == {"a.tar": "corrupt_tar"}
    assert sum(isinstance(one, bytes) for one in found.values()) == 5
    found = open_bytes("a.tar.gz", COMPRESS["gz"](tar)[:-3000])
    assert 6 <= sum(isinstance(one, bytes) for one in found.values()) < 10
    assert set(reasons(found).values()) == {"corrupt_gz"}


def test_office_documents_are_no_archives_of_texts() -> None:
    found = open_bytes("a.docx", make_zip({"[Content_Types].xml": b"<?xml ?>", "word/document.xml": b"<?xml ?>"}))
    assert reasons(found) == {"a.docx": "unsupported_format"}


def test_devices_and_hidden_members() -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        info = tarfile.TarInfo("pipe")
        info.type = tarfile.FIFOTYPE
        archive.addfile(info)
    assert reasons(open_bytes("a.tar", target.getvalue())) == {"a.tar/pipe": "not_a_file"}
    found = open_bytes("a.zip", make_zip({"__MACOSX/._a.txt": b"x", ".git/config": b"x", "a.txt": b"a"}))
    assert [type(one) for one in found.values()] == [Skip, Skip, bytes]


def test_a_budget_is_charged_to_everything_around_it() -> None:
    outer = Budget(lambda: 1, 2.0)
    inner = Budget(lambda: 1_000_000_000, 2.0, outer)
    inner.spend(SLACK_BYTES)
    with pytest.raises(BadRecord, match="zip_bomb"):
        inner.spend(3)
    with pytest.raises(BadRecord, match="corrupt_gz"):
        Unpacked(lambda _: (_ for _ in ()).throw(EOFError("cut")), "gz", None).readinto(memoryview(bytearray(1)))
