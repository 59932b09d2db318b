"""Checkpoints: what was saved comes back; a save is whole or not at all; no file does harm."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from processes import environment, run_python

from fastbptt._files import write_atomically
from fastbptt._safetensors import HEADER_LIMIT
from fastbptt.app.train.checkpoint import load_checkpoint, save_checkpoint

ARRAYS = {
    "weights": np.random.default_rng(0).standard_normal((3, 5)),
    "steps": np.array(7, np.int64),
    "nothing": np.zeros((0,)),
    "vocabulary": np.arange(4, dtype=np.uint32),
}
METADATA = {"settings": {"hidden": 7, "lr": 0.1}, "state": 2**127 + 1, "name": "naïve"}


def content_of(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(begin, end, shape=(1,), dtype="F64"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


OURS = {"__metadata__": {"fastbptt": "{}"}}
TWICE = b'{"__metadata__":{"fastbptt":"{}"},"a":%s,"a":%s}' % ((json.dumps(entry(0, 8)).encode(),) * 2)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, ARRAYS, METADATA)
    return path


def test_what_was_saved_comes_back(saved):
    arrays, metadata = load_checkpoint(saved)
    assert metadata == METADATA
    assert arrays.keys() == ARRAYS.keys()
    for name, array in arrays.items():
        assert array.dtype == ARRAYS[name].dtype and array.shape == ARRAYS[name].shape
        assert array.tobytes() == ARRAYS[name].tobytes()


def test_equal_content_makes_equal_files_in_every_process(tmp_path, saved):
    for i in range(3):
        run_python(
            "import sys; sys.path.insert(0, '.')\n"
            "from test_checkpoint import ARRAYS, METADATA, save_checkpoint\n"
            "save_checkpoint(sys.argv[1], dict(reversed(ARRAYS.items())), METADATA)",
            tmp_path / f"copy{i}",
        )
        assert (tmp_path / f"copy{i}").read_bytes() == saved.read_bytes()


def test_other_tools_can_read_it(saved):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    arrays = load_file(saved)
    assert arrays.keys() == ARRAYS.keys()
    for name, array in arrays.items():
        assert array.dtype == ARRAYS[name].dtype and np.array_equal(array, ARRAYS[name])


def test_what_other_tools_wrote_can_be_read(tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    arrays = ARRAYS | {"half": np.arange(3, dtype=np.float16), "single": np.ones((2, 1), np.float32)}
    save_file(arrays, tmp_path / "file", {"fastbptt": json.dumps(METADATA)})
    got, metadata = load_checkpoint(tmp_path / "file")
    assert metadata == METADATA and got.keys() == arrays.keys()
    for name, array in got.items():
        assert array.dtype == arrays[name].dtype and np.array_equal(array, arrays[name])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not a checkpoint of fastbptt"),
        (b"text", "not a checkpoint of fastbptt"),
        (b"\x80\x04\x95" + bytes(50), "not a checkpoint of fastbptt"),  # the beginning of a pickle
        (bytes(8) + b"{}" + bytes(50), "not a checkpoint of fastbptt"),
        (b"PK\x03\x04" + bytes(50), "not a checkpoint of fastbptt"),  # ... of a zip archive, as of NumPy's
        (content_of(OURS)[:12], "damaged checkpoint"),
        ((2**63).to_bytes(8, "little") + b"{}", "not a checkpoint of fastbptt"),
        ((HEADER_LIMIT + 1).to_bytes(8, "little") + b"{" * 20, "not a checkpoint of fastbptt"),
        (content_of({}), "not a checkpoint of fastbptt"),
        (content_of({"a": entry(0, 8)}, bytes(8)), "not a checkpoint of fastbptt"),
        (content_of({"__metadata__": {"format": "pt"}}), "not a checkpoint of fastbptt"),
        (content_of({"__metadata__": 3}), "damaged checkpoint"),
        (content_of({"__metadata__": "fastbptt"}), "damaged checkpoint"),
        (content_of(b"[]"), "not a checkpoint of fastbptt"),
        (content_of(b"{" * 1000), "damaged checkpoint"),
        (content_of(b'{"a":' * 100_000), "damaged checkpoint"),
        (content_of(OURS | {"a": 3}), "damaged checkpoint"),
        (content_of(OURS | {"a": {}}), "damaged checkpoint"),
        (content_of(TWICE, bytes(8)), "damaged checkpoint: 'a' is given twice"),
        (content_of(OURS | {"a": entry(8, 16)}, bytes(16)), "damaged checkpoint"),  # a hole
        (content_of(OURS | {"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)), "damaged checkpoint"),  # an overlap
        (content_of(OURS | {"a": entry(0, 8)}, bytes(7)), "damaged checkpoint"),
        (content_of(OURS | {"a": entry(0, 8)}, bytes(9)), "damaged checkpoint"),
        (content_of(OURS | {"a": entry(0, 2**60, (2**57,))}, bytes(8)), "damaged checkpoint"),
        (content_of(OURS | {"a": entry(0, 8, (2**40, 2**40))}, bytes(8)), "damaged checkpoint"),
        (content_of(OURS | {"a": entry(0, 8, (-1,))}, bytes(8)), "damaged checkpoint"),
        (content_of(OURS | {"a": entry(0, 0, (2**61, 2**61, 0))}), "damaged checkpoint: 'a' has the shape"),
        (
            content_of(OURS | {"\x1b[1m" + "a" * 10_000: entry(0, 8, (-1,))}, bytes(8)),
            r"damaged checkpoint: '\\x1b\[1maaa.* has the shape \[-1\]$",
        ),
        (content_of(OURS | {"a": entry(0, 8, (4,), "BF16")}, bytes(8)), "damaged checkpoint: 'a' is of type 'BF16'"),
        (content_of(OURS | {"a": entry(0, 8, dtype=["F64"])}, bytes(8)), "damaged checkpoint"),
        (content_of(OURS | {"a": entry(0, 8, (True,))}, bytes(8)), "damaged checkpoint"),
        (content_of(OURS | {"a": entry(0, 8, (1.0,))}, bytes(8)), "damaged checkpoint"),
        (content_of(OURS | {"a": entry(0.0, 8)}, bytes(8)), "damaged checkpoint"),
        (content_of(OURS | {"a": entry(0, 8) | {"data_offsets": [0, 8, 8]}}, bytes(8)), "damaged checkpoint"),
        (content_of(OURS | {"a": entry(0, 8) | {"shape": 1}}, bytes(8)), "damaged checkpoint"),
        (content_of(OURS | {"a": entry(0, 8, (1,) * 100)}, bytes(8)), "damaged checkpoint"),
        (content_of({"__metadata__": {"fastbptt": "{"}}), "damaged checkpoint"),
        (content_of({"__metadata__": {"fastbptt": "[" * 100_000}}), "damaged checkpoint"),
        (content_of({"__metadata__": {"fastbptt": 3}}), "damaged checkpoint"),
    ],
)
def test_damaged_files(tmp_path, content, complaint):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path}: {complaint}") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(("promised", "size"), [(3_000_000_000, 8), (8, 1 << 43), (3_000_000_000, 1 << 43)])
def test_a_header_that_promises_more_or_less_than_there_is(tmp_path, promised, size):
    """It is compared with the file's size before anything is read or allocated."""
    path = tmp_path / "file"
    header = content_of(OURS | {"a": entry(0, promised, (promised // 8,))})
    path.write_bytes(header)
    try:
        os.truncate(path, len(header) + size)
    except OSError:
        pytest.skip("no room for a file of 8 TiB, though it has only holes")
    complaint = f"damaged checkpoint: its header promises {len(header) + promised:,} bytes, and it has {len(header) + size:,}"
    with pytest.raises(ValueError, match=f"^{path}: {complaint}$"):
        load_checkpoint(path)


def test_any_damage_is_a_value_error_or_harmless(tmp_path, saved):
    content, rng = saved.read_bytes(), np.random.default_rng(0)
    path = tmp_path / "file"
    for _ in range(500):
        damaged = bytearray(content)
        for at in rng.integers(0, len(content), rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(1, len(content) + 1)] if rng.random() < 0.5 else damaged)
        try:
            arrays, _ = load_checkpoint(path)
        except ValueError:
            continue
        assert sum(array.nbytes for array in arrays.values()) <= len(content)


@pytest.mark.parametrize("name", ["directory", os.devnull])
def test_no_regular_file(tmp_path, name):
    (tmp_path / "directory").mkdir()
    with pytest.raises(ValueError, match="expected a checkpoint, got a directory or device"):
        load_checkpoint(tmp_path / name)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "missing")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_previous_file(saved, monkeypatch, call):
    before = saved.read_bytes()

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(saved, {"weights": np.ones(9)}, {})
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "file", b"")


def test_killed_while_saving(tmp_path):
    """Whenever the process is killed, the file is byte for byte one that it wrote."""
    code = (
        "import sys, numpy as np\n"
        "from fastbptt.app.train.checkpoint import save_checkpoint\n"
        "for i in range(10**9):\n"
        "    save_checkpoint(sys.argv[1], {'a': np.full(200_000, float(i))}, {'i': i})\n"
        "    print(i, flush=True)\n"
    )
    path, rng = tmp_path / "checkpoint", np.random.default_rng(0)
    for _ in range(6):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)], env=environment(), stdout=subprocess.PIPE)
        try:
            writer.stdout.readline()
            time.sleep(rng.uniform(0, 0.03))
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.communicate()
        arrays, metadata = load_checkpoint(path)
        assert np.array_equal(arrays["a"], np.full(200_000, float(metadata["i"])))


def test_no_pickle_in_the_package():
    import fastbptt

    modules = list(Path(fastbptt.__file__).parent.rglob("*.py"))
    assert any(path.name == "checkpoint.py" for path in modules)
    for path in modules:
        text = path.read_text()
        assert "import pickle" not in text and "allow_pickle=True" not in text, path
