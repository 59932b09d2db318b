"""A run's directory: for one run at a time, and nothing in it is of another run unless it may be replaced."""

import os
from pathlib import Path

from ..._files import lock, require_writable, write_atomically


class Folder:
    """A directory that nobody else trains in until the ``with`` block ends.

    The lock is the operating system's, on the directory itself: nothing of it stays behind, however the process ends. The directory may be
    moved meanwhile, and another run begin under its name: what is written goes into the one that is locked.

    Parameters
    ----------
    path : str or path
        Locked as soon as it is there: at the beginning of the block, or by `prepare`.

    Raises
    ------
    ValueError
        If another run is at work there.
    """

    def __init__(self, path):
        self.path = Path(path)
        self._descriptor = None

    def __enter__(self):
        self._lock()
        return self

    def __exit__(self, *_):
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def has(self, file):
        """Whether this is where a file is, links followed: one that has another name elsewhere is of the other directory."""
        return self.path.is_dir() and self.path.samefile(Path(file).resolve().parent)

    def prepare(self, files, *, overwrite=False):
        """Make the directory, and see that files can be written in it.

        Parameters
        ----------
        files : sequence of path
            Those that are to be written.
        overwrite : bool
            Whether they may be there already.

        Raises
        ------
        OSError, ValueError
            If they cannot be written, or must not.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path}: expected a directory, got a file")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock()
        for file in files:
            require_writable(file)
            if not overwrite and os.path.lexists(file):
                raise ValueError(f"{file}: exists already; --overwrite replaces it, --out leads elsewhere")
        if not self._leads_here():  # what was seen there was not in the directory that is written to
            raise ValueError(f"{self.path}: moved or replaced while this run was starting there")

    def write(self, path, content):
        """Write a file of the directory, as `write_atomically` does.

        Raises
        ------
        OSError
            If it cannot be written; also if it is written, but the directory's path leads there no more.
        """
        try:
            write_atomically(path, content, self._descriptor)
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.path}: removed while this run was at work there") from None
        if not self._leads_here():
            found = f"{Path(path).name} is in the directory that it has begun in"
            raise OSError(f"{self.path}: moved or replaced while this run was at work there; {found}")

    def _leads_here(self):
        """Whether the path is still that of the locked directory."""
        if self._descriptor is None:
            return True
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except OSError:
            return False

    def _lock(self):
        if self._descriptor is not None or not self.path.is_dir():
            return
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError:
            return
        if lock(descriptor) is False:
            os.close(descriptor)
            raise ValueError(f"{self.path}: another run is at work there; --out leads elsewhere")
        self._descriptor = descriptor
