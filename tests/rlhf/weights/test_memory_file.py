from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from resource import RLIMIT_FSIZE, RUSAGE_SELF, getrlimit, getrusage, setrlimit
from subprocess import run

import numpy as np
import pytest

from rlhf.weights.memory_file import MemoryFile, is_open, mapped


def content(text: bytes) -> np.ndarray:
    return np.frombuffer(text, dtype=np.uint8)


@pytest.fixture
def file() -> Iterator[MemoryFile]:
    file = MemoryFile()
    yield file
    file.close()


def test_parts_are_written_end_to_end_and_replace_the_content_before(file: MemoryFile) -> None:
    file.write([content(b"0123456789")])
    file.write([content(b"ab"), content(b""), content(b"cde")])
    assert bytes(mapped(file.path).numpy()) == b"abcde56789", "what lies behind is of longer content"


def test_another_process_reads_it_and_nothing_of_it_lies_in_a_folder(file: MemoryFile) -> None:
    file.write([content(b"content")])
    assert run(["cat", file.path], capture_output=True, check=True).stdout == b"content"
    assert not list(Path("/dev/shm").glob(f"*{file.name}*"))


def test_a_mapping_shows_later_content_and_outlives_the_file(file: MemoryFile) -> None:
    file.write([content(b"before")])
    memory = mapped(file.path)
    file.write([content(b"after ")])
    file.close()
    assert bytes(memory.numpy()) == b"after "


def test_a_reader_that_writes_changes_what_it_alone_sees(file: MemoryFile) -> None:
    file.write([content(b"content")])
    one, other = mapped(file.path), mapped(file.path)
    one.zero_()
    assert bytes(other.numpy()) == b"content" == Path(file.path).read_bytes()


def test_a_file_without_content_is_empty_memory(file: MemoryFile) -> None:
    assert len(mapped(file.path)) == 0
    file.write([content(b"")])
    assert len(mapped(file.path)) == 0


def test_new_content_takes_the_pages_of_the_old(file: MemoryFile) -> None:
    """They are still mapped: 64 MiB of new ones would take a page fault for each 16, here and in the reader."""
    file.write([np.full(2**26, 1, dtype=np.uint8)])
    memory, others = mapped(file.path).numpy(), np.full((2, 2**25), 2, dtype=np.uint8)
    assert memory.sum() == 2**26
    faults = getrusage(RUSAGE_SELF).ru_minflt
    file.write(list(others))
    assert memory.sum() == 2 * 2**26
    assert getrusage(RUSAGE_SELF).ru_minflt - faults < 500


def test_a_failed_write_changes_nothing_and_the_next_one_works(file: MemoryFile) -> None:
    file.write([content(b"before")])
    limits = getrlimit(RLIMIT_FSIZE)
    try:
        setrlimit(RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            file.write([np.ones(120, dtype=np.uint8)])
        assert Path(file.path).read_bytes() == b"before"
        file.write([content(b"after that")])
    finally:
        setrlimit(RLIMIT_FSIZE, limits)
    assert Path(file.path).read_bytes() == b"after that"


def test_closing_twice_is_harmless_and_releases_the_name() -> None:
    file = MemoryFile()
    file.write([content(b"content")])
    path = file.path
    assert is_open(path, file.name) and not is_open(path, file.name[:-1])
    file.close()
    file.close()
    assert not is_open(path, file.name)
