from pathlib import Path

import pytest

from zoo.io.files import atomic_path, write_atomically


def test_a_file_is_written_whole_and_its_folder_created(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.txt"
    write_atomically(file, "größer")
    write_atomically(file, "größer als zuvor")
    assert file.read_bytes() == "größer als zuvor".encode()
    assert list(file.parent.iterdir()) == [file]


def test_an_interrupted_write_keeps_the_previous_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_atomically(file, "before")

    def interrupted() -> None:
        with atomic_path(file) as temporary:
            temporary.write_text("half of")
            assert file.read_text() == "before"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]
