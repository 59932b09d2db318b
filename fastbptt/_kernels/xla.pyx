"""The handler by which XLA, and so JAX, calls the kernels: through the C interface, as any other package does (`cython_api.pxd`).

A program of XLA's has a buffer for every array, and one attribute, ``problem``, integers that say the rest: what is to be done,
the sizes, and which field of the problem each buffer is. XLA calls from threads of its own, without Python. What is compiled stays valid
within this process only, and so the integers mean something here alone.
"""

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int64_t
from libc.string cimport memset

cimport fastbptt.cython_api as bptt
from fastbptt._kernels cimport xla
from fastbptt._kernels.pool cimport use_controls, usual_controls

import sys

bptt.import_fastbptt()

cdef enum:                         # which of the integers of ``problem``
    CALL                           # FORWARD or BACKWARD
    DTYPE
    CELL
    ACTIVATION
    SIZES                          # T, B, I, H, P
    THREADS = SIZES + 5            # at most; the workspace has room for so many
    WORKSPACE                      # how many bytes of it the kernels need
    FIELDS                         # those of arguments and results

cdef enum Kind:
    REAL
    INTEGER                        # 32 or 64 bits: without jax_enable_x64, JAX has the former alone
    FLAG
    BYTE

cdef struct Field:
    size_t offset                  # in the struct
    const char *shape              # a letter for each axis
    Kind kind

cdef enum:
    MOST_FIELDS = 32

cdef Field fields[MOST_FIELDS]
cdef bptt.Problem any_problem
numbers = {}                       # of the fields, by name


cdef void add(name, const void *place, const char *shape, Kind kind):
    cdef Field *field = &fields[<Py_ssize_t>len(numbers)]
    field.offset, field.shape, field.kind = <size_t>place - <size_t>&any_problem, shape, kind
    numbers[name] = len(numbers)


add("x", &any_problem.x, "TBI", REAL)
add("tokens", &any_problem.tokens, "TB", INTEGER)
add("lengths", &any_problem.lengths, "B", INTEGER)
add("resets", &any_problem.resets, "TB", FLAG)
add("w_ih", &any_problem.w_ih, "NI", REAL)
add("w_hh", &any_problem.w_hh, "NP", REAL)
add("b_ih", &any_problem.b_ih, "N", REAL)
add("b_hh", &any_problem.b_hh, "N", REAL)
add("w_hr", &any_problem.w_hr, "PH", REAL)
add("leak", &any_problem.leak, "H", REAL)
add("h0", &any_problem.h0, "BP", REAL)
add("c0", &any_problem.c0, "BH", REAL)
add("h_n", &any_problem.h_n, "BP", REAL)
add("c_n", &any_problem.c_n, "BH", REAL)
add("out", &any_problem.out, "TBP", REAL)
add("h", &any_problem.h, "SBP", REAL)
add("c", &any_problem.c, "SBH", REAL)
add("gates", &any_problem.gates, "TBN", REAL)
add("m", &any_problem.m, "TBH", REAL)
add("d_out", &any_problem.d_out, "TBP", REAL)
add("d_h_n", &any_problem.d_h_n, "BP", REAL)
add("d_c_n", &any_problem.d_c_n, "BH", REAL)
add("dx", &any_problem.dx, "TBI", REAL)
add("dh0", &any_problem.dh0, "BP", REAL)
add("dc0", &any_problem.dc0, "BH", REAL)
add("dw_ih", &any_problem.dw_ih, "NI", REAL)
add("dw_hh", &any_problem.dw_hh, "NP", REAL)
add("db_ih", &any_problem.db_ih, "N", REAL)
add("db_hh", &any_problem.db_hh, "N", REAL)
add("dw_hr", &any_problem.dw_hr, "PH", REAL)
add("workspace", &any_problem.workspace, "W", BYTE)


cdef inline void **place_of(bptt.Problem *problem, int64_t field) noexcept nogil:
    return <void **>(<char *>problem + fields[field].offset)


cdef int64_t length(const bptt.Problem *problem, char axis) noexcept nogil:
    """Of an axis, by its letter."""
    cdef int64_t gates = 1 if problem.cell == bptt.RNN else 3 if problem.cell == bptt.GRU else 4
    if axis == b"T":
        return problem.T
    if axis == b"B":
        return problem.B
    if axis == b"I":
        return problem.I
    if axis == b"H":
        return problem.H
    if axis == b"P":
        return problem.P
    if axis == b"N":
        return gates * problem.H
    if axis == b"S":               # slots for states
        return problem.T + 1 if problem.resets == NULL else 2 * problem.T
    return problem.workspace_size + room_for_integers(problem)


cdef int64_t room_for_integers(const bptt.Problem *problem) noexcept nogil:
    """At the beginning of the workspace: tokens and lengths of 32 bits, as 64, aligned."""
    return (1 + (problem.T * problem.B if problem.tokens != NULL else 0) + (problem.B if problem.lengths != NULL else 0)) * sizeof(int64_t)


# --- Before a program is compiled -------------------------------------------------------------------------------------

def shape_of(numbers_of_problem, name):
    """The shape of a field, its workspace too."""
    cdef bptt.Problem problem
    cdef const char *axis = fields[<Py_ssize_t>numbers[name]].shape
    begin(&problem, numbers_of_problem)
    shape = []
    while axis[0]:
        shape.append(length(&problem, axis[0]))
        axis += 1
    return tuple(shape)


def describe(bint backward, int itemsize, int cell, int activation, sizes, arguments, results):
    """The integers of a problem, from T, B, I, H and P and the names of its fields; ValueError if there can be none such."""
    cdef bptt.Problem problem
    cdef int call = bptt.BACKWARD if backward else bptt.FORWARD
    cdef Py_ssize_t needed = 0
    described = [call, itemsize, cell, activation, *sizes, bptt.max_threads(), 0, *[numbers[name] for name in (*arguments, *results)]]
    begin(&problem, described)
    full_length = int(problem.T).to_bytes(sizeof(int64_t), sys.byteorder)
    lengths = full_length * (problem.B if problem.lengths != NULL else 0)
    resets = b"\1" * (problem.T * problem.B if problem.resets != NULL else 0)
    cdef const char *any_lengths = lengths
    cdef const char *cut_everywhere = resets
    if problem.lengths != NULL:    # any make the same difference
        problem.lengths = <const int64_t *>any_lengths
    if problem.resets != NULL:     # and these the most
        problem.resets = <const unsigned char *>cut_everywhere
    for threads in range(1, described[THREADS] + 1):
        problem.threads = threads
        needed = bptt.workspace_bytes(&problem, call)
        if needed < 0:
            raise ValueError(bptt.describe(<int>needed).decode())
        described[WORKSPACE] = max(described[WORKSPACE], needed)
    return tuple(described)


cdef begin(bptt.Problem *problem, described):
    """Sizes; and at each field that there is, an address at which nothing stands."""
    problem[0] = bptt.new_problem()
    problem.dtype, problem.cell, problem.activation = described[DTYPE], described[CELL], described[ACTIVATION]
    problem.T, problem.B, problem.I = described[SIZES], described[SIZES + 1], described[SIZES + 2]
    problem.H, problem.P = described[SIZES + 3], described[SIZES + 4]
    for field in described[FIELDS:]:
        place_of(problem, field)[0] = <void *>&fields
    problem.workspace_size = described[WORKSPACE]


# --- When it runs -----------------------------------------------------------------------------------------------------

cdef xla.Error *error(const xla.Api *api, int code, const char *message) noexcept nogil:
    cdef xla.ErrorArguments arguments
    memset(&arguments, 0, sizeof(arguments))
    arguments.struct_size = <size_t>&arguments.code + sizeof(int) - <size_t>&arguments
    arguments.message, arguments.code = message, code
    return api.create_error(&arguments)


cdef xla.Error *handle(xla.CallFrame *frame) noexcept nogil:
    cdef const xla.Api *api = frame.api
    cdef bptt.Problem problem
    cdef int status
    cdef size_t controls
    cdef const char *wrong
    cdef xla.Extension *extension = frame.extension_start
    while extension != NULL:
        if extension.type == xla.METADATA:
            return introduce(api, (<xla.MetadataExtension *>extension).metadata)
        extension = extension.next
    if api.api_version.major_version != xla.MAJOR:
        return error(api, INTERNAL_ERROR, "fastbptt: XLA's foreign function interface has another major version than 0")
    if frame.struct_size < <size_t>&frame.attributes + sizeof(xla.Attributes) - <size_t>frame or frame.stage != xla.EXECUTE:
        return error(api, INTERNAL_ERROR, "fastbptt: expected a call frame of the stage EXECUTE, of version 0.1 or later")
    wrong = bind(&problem, frame)
    if wrong != NULL:
        return error(api, INTERNAL_ERROR, wrong)
    controls = use_controls(usual_controls())   # XLA's threads flush subnormal numbers to 0
    status = bptt.backward(&problem) if call_of(frame) == bptt.BACKWARD else bptt.forward(&problem)
    use_controls(controls)
    return error(api, INVALID, words_for(status)) if status != bptt.OK else NULL


cdef inline const char *words_for(int status) noexcept nogil:
    """By the names of the functions' arguments."""
    if status == bptt.WRONG_TOKEN:
        return "x: expected tokens from 0 to I - 1"
    return bptt.describe(status)


cdef enum:
    INTERNAL_ERROR = xla.INTERNAL
    INVALID = xla.INVALID_ARGUMENT

cdef int seen_major = -1, seen_minor = -1


cdef xla.Error *introduce(const xla.Api *api, xla.Metadata *metadata) noexcept nogil:
    """Say for which version this was made: if XLA's is older, for that one."""
    global seen_major, seen_minor
    if api == NULL:                # as before 0.2
        seen_major, seen_minor = xla.MAJOR, xla.OLDEST_MINOR
    else:
        seen_major, seen_minor = api.api_version.major_version, api.api_version.minor_version
    metadata.api_version.major_version = xla.MAJOR
    metadata.api_version.minor_version = min(seen_minor, xla.MINOR) if seen_major == xla.MAJOR else xla.MINOR
    metadata.traits = 0
    return NULL


cdef inline const xla.Array *problem_attribute(const xla.CallFrame *frame) noexcept nogil:
    return <const xla.Array *>frame.attributes.at[0]


cdef inline int64_t call_of(const xla.CallFrame *frame) noexcept nogil:
    return (<const int64_t *>problem_attribute(frame).data)[CALL]


cdef const char *bind(bptt.Problem *problem, const xla.CallFrame *frame) noexcept nogil:
    """The problem that a call describes; what is wrong with it, or NULL."""
    cdef const int64_t *given
    cdef int64_t i, n = frame.arguments.size + frame.results.size
    problem[0] = bptt.new_problem()
    if frame.attributes.size != 1 or frame.attributes.types[0] != xla.ARRAY:
        return "fastbptt: expected one attribute, an array"
    if problem_attribute(frame).dtype != xla.S64 or problem_attribute(frame).size != <size_t>(FIELDS + n):
        return "fastbptt: expected the attribute to be int64, with a number for each array"
    given = <const int64_t *>problem_attribute(frame).data
    problem.dtype, problem.cell, problem.activation = <int>given[DTYPE], <int>given[CELL], <int>given[ACTIVATION]
    problem.T, problem.B, problem.I = given[SIZES], given[SIZES + 1], given[SIZES + 2]
    problem.H, problem.P, problem.workspace_size = given[SIZES + 3], given[SIZES + 4], given[WORKSPACE]
    problem.threads = <int>min(<int64_t>bptt.max_threads(), given[THREADS])
    for i in range(n):
        if not 0 <= given[FIELDS + i] < MOST_FIELDS or fields[given[FIELDS + i]].shape == NULL or buffer_at(frame, i) == NULL:
            return "fastbptt: expected arrays, and known fields"
        place_of(problem, given[FIELDS + i])[0] = buffer_at(frame, i).data
    for i in range(n):
        if not fits(problem, given[FIELDS + i], buffer_at(frame, i)):
            return "fastbptt: an array has not the shape or dtype that its program was made for"
    if problem.workspace == NULL:
        return "fastbptt: expected a workspace"
    take_integers(problem, frame, given)
    return NULL


cdef inline const xla.Buffer *buffer_at(const xla.CallFrame *frame, int64_t i) noexcept nogil:
    """The i-th of arguments and results together; NULL if it is something else."""
    cdef const xla.Buffers *among = &frame.arguments
    if i >= among.size:
        i -= among.size
        among = &frame.results
    return <const xla.Buffer *>among.at[i] if among.types[i] == xla.BUFFER else NULL


cdef bint fits(const bptt.Problem *problem, int64_t field, const xla.Buffer *buffer) noexcept nogil:
    cdef const char *axis = fields[field].shape
    cdef Kind kind = fields[field].kind
    cdef int64_t i = 0
    if kind == REAL and buffer.dtype != (xla.F32 if problem.dtype == bptt.FLOAT32 else xla.F64):
        return False
    if (kind == FLAG and buffer.dtype != xla.PRED) or (kind == BYTE and buffer.dtype != xla.U8):
        return False
    if kind == INTEGER and buffer.dtype != xla.S32 and buffer.dtype != xla.S64:
        return False
    while axis[i]:
        if i == buffer.rank or buffer.dims[i] != length(problem, axis[i]):
            return False
        i += 1
    return i == buffer.rank


cdef void take_integers(bptt.Problem *problem, const xla.CallFrame *frame, const int64_t *given) noexcept nogil:
    """Those of 32 bits, as 64, into the beginning of the workspace; the kernels' comes after them."""
    cdef int64_t i, j, count
    cdef const xla.Buffer *buffer
    cdef int64_t *room = <int64_t *>((<size_t>problem.workspace + sizeof(int64_t) - 1) // sizeof(int64_t) * sizeof(int64_t))
    for i in range(frame.arguments.size):
        buffer = buffer_at(frame, i)
        if fields[given[FIELDS + i]].kind == INTEGER and buffer.dtype == xla.S32:
            count = problem.B if buffer.rank == 1 else problem.T * problem.B
            for j in range(count):
                room[j] = (<const int *>buffer.data)[j]
            place_of(problem, given[FIELDS + i])[0] = room
            room += count
    problem.workspace = room


def version():
    """Of XLA's interface, (major, minor), as it told the handler before a program was lowered; or None."""
    return (seen_major, seen_minor) if seen_major >= 0 else None


MADE_FOR = xla.MAJOR, xla.MINOR
handler = PyCapsule_New(<void *>handle, NULL, NULL)
