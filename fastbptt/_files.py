"""Files that are written whole or not at all; locks that end with their process."""

import os
import re
import secrets
import stat
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows, which goes without locks
    fcntl = None  # type: ignore[assignment]

TEMPORARY = re.compile(r"\.fastbptt-[0-9a-f]{16}\.tmp")


def write_atomically(path, content, directory=None):
    """Write bytes to a file so that, whatever happens, either the old content or the new one is found there.

    A file that was there keeps its permissions. A symbolic link is replaced, and what it points to left alone.

    Parameters
    ----------
    path : str or path
    content : bytes
    directory : int or None
        The descriptor of an open directory, in which the file is written under its name, wherever its path leads by now.

    Raises
    ------
    OSError
        If it cannot be written; the error's file name is the path.
    """
    path = Path(path)
    with _file_beside(path, directory) as (file, temporary):
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        os.replace(temporary, _within(directory, path), src_dir_fd=directory, dst_dir_fd=directory)
        _sync_directory(path.parent, directory)


@contextmanager
def errors_name(path):
    """Whatever the system refuses within has to do with this file, whether it says so or not, as it does not of reading and writing."""
    try:
        yield
    except OSError as error:
        if error.filename2 is not None:  # which is shown whatever it is set to
            raise OSError(error.errno, error.strerror, str(path)) from error
        error.filename = str(path)
        raise


def require_writable(path):
    """OSError or ValueError, which names the path, if `write_atomically` could not put a file there."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: expected a file, got a directory")
    with _file_beside(path):
        pass


def lock(descriptor):
    """Lock an open file or directory until its descriptor is closed, at the latest when the process ends.

    Returns
    -------
    bool or None
        False if another has it; None where there are no locks, as on some network file systems.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def _file_beside(path, directory=None):
    """A new file in the path's directory and its name, of which nothing is left in the end; those that dead processes left go, too."""
    temporary = None
    with suppress(OSError):
        _remove_dead(path.parent, directory)
    try:
        with errors_name(path):
            descriptor, temporary = _create(_within(directory, path), directory)
            with open(descriptor, "wb") as file:
                yield file, temporary
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory)


def _within(directory, path):
    """What a file is called: in an open directory by its name alone."""
    return path if directory is None else Path(path.name)


def _create(path, directory):
    """A file for what is to stand at the path, with the permissions that it has there: its descriptor, locked, and its name."""
    mode = _permissions(path, directory)
    while True:
        temporary = path.with_name(f".fastbptt-{secrets.token_hex(8)}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode, dir_fd=directory)
        if lock(descriptor) is not False and os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)  # taken for a dead one before it was locked
    if mode is not None:
        os.chmod(temporary, mode, dir_fd=directory)
    return descriptor, temporary


def _permissions(path, directory):
    """Of the file at the path; None if there is none."""
    try:
        status = os.stat(path, dir_fd=directory)
    except OSError:
        return None
    return stat.S_IMODE(status.st_mode) & 0o777 if stat.S_ISREG(status.st_mode) else None


def _remove_dead(parent, directory):
    """Remove the temporary files that nobody has locked: their processes ended before they could."""
    if fcntl is None:
        return
    for name in os.listdir(parent if directory is None else directory):
        if TEMPORARY.fullmatch(name):
            with suppress(OSError):
                _remove_if_dead(_within(directory, parent / name), directory)


def _remove_if_dead(temporary, directory):
    descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    try:
        if lock(descriptor):
            os.unlink(temporary, dir_fd=directory)
    finally:
        os.close(descriptor)


def _sync_directory(parent, directory):
    """Make a rename last; where the directory cannot be opened, that is left to the system."""
    try:
        descriptor = os.open(parent, os.O_RDONLY) if directory is None else os.dup(directory)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
