# All kernels, for one element type and one instruction set. setup.py makes a module of this source for every pair of the two;
# `simd.h` says what `real` and `vec` are in each.

cimport cython
from fastbptt._kernels cimport interface
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_New
from libc.float cimport DBL_EPSILON, DBL_MAX, FLT_EPSILON
from libc.math cimport INFINITY, exp, fabs, floor, log, pow, signbit, sqrt
from libc.stdint cimport int64_t
from libc.string cimport memcmp, memcpy, memset, strchr, strcmp, strlen

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX

from fastbptt._kernels.chunks cimport CHUNK, READ, WRITE, Arrays, Chunks, OverChunk, plan_chunks, run_chunks
from fastbptt._kernels.memory cimport Block
from fastbptt._kernels.pool cimport (
    MAX_CHAINS, MAX_PARTS, MAX_THREADS, Progress, Task, Watch, atomic_exchange, atomic_int, begin_parallel, end_parallel, interrupted,
    jobs_abandoned, parallel, parallel_in_order, parallel_steps, raise_if_interrupted, step_cost, tasks_for, tell, thread_limit, wait_for
)
from fastbptt._kernels.simd cimport *

include "sums.pxi"
include "product.pxi"
include "workspace.pxi"
include "time.pxi"
include "problem.pxi"
include "sharing.pxi"
include "weights.pxi"
include "projection.pxi"
include "projected.pxi"
include "weight_gradients.pxi"
include "forward.pxi"
include "recompute.pxi"
include "clip_step.pxi"
include "backward.pxi"
include "early_stop.pxi"
include "gradients.pxi"
include "jvp.pxi"
include "cells.pxi"
include "views.pxi"
include "side_by_side.pxi"
include "passes.pxi"
include "fleet.pxi"
include "whole_nets.pxi"
include "small_nets.pxi"
include "small_forward.pxi"
include "small_backward.pxi"
include "stream.pxi"
include "gather.pxi"
include "linear.pxi"
include "loss.pxi"
include "clip.pxi"
include "optimisers.pxi"
include "elimination.pxi"
include "factorisation.pxi"
include "tangents.pxi"
include "vector_functions.pxi"
include "entries.pxi"


def lanes():
    """Elements in a vector."""
    return LANES
