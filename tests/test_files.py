"""Files are the old one or the new one; digests tell parts apart."""

from __future__ import annotations

import errno
import hashlib
import os
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgu_lightning import collect
from pgu_lightning.adapters import export_delta
from pgu_lightning.files import atomic_write, digest
from pgu_lightning.records import MethodRecord, Report, RequestRecord
from pgu_lightning.report import write_html


def test_a_new_file_in_a_new_folder(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    assert atomic_write(str(path), lambda temporary: temporary.write_text("whole")) == path
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_the_temporary_file_lies_beside_it(tmp_path):
    """A rename is atomic within one file system only."""
    seen = []
    atomic_write(tmp_path / "a.txt", lambda temporary: seen.append((temporary.parent, temporary.exists())))
    assert seen == [(tmp_path, True)]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError("no")], ids=repr)
def test_a_writer_that_fails_halfway_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("ne")
        raise error

    with pytest.raises(type(error)):
        atomic_write(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def every_writer(folder):
    """What writes each kind of file of the package."""
    model = torch.nn.Linear(2, 2)
    data = torch.utils.data.TensorDataset(torch.eye(2), torch.tensor([0, 1]))
    other = torch.nn.Linear(2, 2)
    report = Report(RequestRecord("class", 1, "d"), MethodRecord("pgu", False), {})
    return {
        "retain space": collect(model, torch.utils.data.DataLoader(data)).save,
        "report": report.save,
        "page": lambda path: write_html(report, path),
        "delta": lambda path: export_delta(model, other, path),
    }


@pytest.mark.parametrize("kind", ["retain space", "report", "page", "delta"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, kind):
    path = tmp_path / "file"
    path.write_text("old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # the last place where a disk says that it is full
    with pytest.raises(OSError, match="No space left on device"):
        every_writer(tmp_path)[kind](path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_file_before_and_none_after_a_failure(tmp_path):
    with pytest.raises(ZeroDivisionError):
        atomic_write(tmp_path / "a.txt", lambda _: 1 / 0)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_never_sees_a_part(tmp_path):
    path, stop, seen = tmp_path / "a.txt", threading.Event(), set()
    path.write_bytes(b"0" * 10_000)

    def read():
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(40):
            atomic_write(path, lambda temporary, number=number: temporary.write_bytes(b"%d" % (number % 10) * 10_000))
    finally:
        stop.set()
        reader.join()
    assert all(len(content) == 10_000 and len(set(content)) == 1 for content in seen)


def test_the_file_has_the_rights_of_an_ordinary_one(tmp_path):
    before = os.umask(0o027)
    try:
        path = atomic_write(tmp_path / "a.txt", lambda temporary: temporary.write_text("x"))
        assert path.stat().st_mode & 0o777 == 0o640
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


parts = st.lists(st.text(max_size=4) | st.binary(max_size=4), max_size=4)


def as_bytes(part):
    return part.encode() if isinstance(part, str) else part


@given(parts, parts)
@settings(deadline=None, max_examples=200)
def test_digests_are_the_same_for_the_same_parts_only(one, other):
    same = [as_bytes(part) for part in one] == [as_bytes(part) for part in other]
    assert (digest(one) == digest(other)) is same
    assert digest(iter(one)) == digest(one)


def test_a_digest_is_sha256_over_lengths_and_parts():
    """Written into files: it must not change between versions."""
    expected = hashlib.sha256(b"\x02\0\0\0\0\0\0\0ab" + b"\x03\0\0\0\0\0\0\0\xc3\xbcz").hexdigest()
    assert digest(["ab", "üz"]) == expected
