"""What pytest runs here, and a pause before each test for the threads of the contestant before to fall asleep."""

import time

import pytest


def pytest_configure(config):
    config.addinivalue_line("python_files", "bench_recurrent.py")
    config.addinivalue_line("python_files", "bench_forward_mode.py")
    config.addinivalue_line("python_files", "bench_ragged.py")
    config.addinivalue_line("python_files", "bench_stacks.py")
    config.addinivalue_line("python_files", "bench_torch_modules.py")


@pytest.fixture(autouse=True)
def silence():
    time.sleep(0.2)
