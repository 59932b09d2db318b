"""A run's directory: for one run at a time, and nothing in it is of another run unless it may be replaced."""

import os
from pathlib import Path

from .._files import lock, require_writable


class Folder:
    """A directory that nobody else trains in until the ``with`` block ends.

    The lock is the operating system's, on the directory itself: nothing of it stays behind, however the process ends.

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
