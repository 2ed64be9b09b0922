"""Files and directories that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE_MODE, DIRECTORY_MODE = 0o666, 0o777  # before the umask; mkstemp and mkdtemp shut out everybody else


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yields the path of an empty file beside `path`, which takes its place when the block ends without an error."""
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(FILE_MODE & ~_umask())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """Yields an empty directory beside `path`, which becomes `path` when the block ends without an error.

    Raises ValueError if `path` is there and is not an empty directory, or is one that cannot be replaced: a link, the
    current directory, a mount point.
    """
    refuse_occupied(Path(path))
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield partial
        for file in partial.iterdir():  # safetensors, too, writes for the owner alone
            file.chmod((DIRECTORY_MODE if file.is_dir() else FILE_MODE) & ~_umask())
        partial.chmod(DIRECTORY_MODE & ~_umask())
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_occupied(path: Path) -> None:
    """ValueError for what cannot become a new directory."""
    if path.is_symlink():
        raise ValueError(f"out must be a new or empty directory, got {path}, which is a link")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"out must be a new or empty directory, got {path}, which is taken")
    if path.resolve() == Path.cwd() or path.is_mount():
        raise ValueError(f"out must be a new or empty directory, got {path}, in which this runs or a disk is mounted")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
