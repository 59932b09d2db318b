"""PyTorch's tensors as the kernels take arrays, and what the kernels leave as tensors.

A small forward and backward pass looks at two dozen tensors and makes a dozen. PyTorch takes 3 us to make a NumPy array of one, half of one
to say by its attributes what it is, and as long to make one of an array. By its table of C functions (`dlpack.pxd`) a look takes 50 ns.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AsString, PyByteArray_FromStringAndSize
from cpython.exc cimport PyErr_Clear
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from cpython.tuple cimport PyTuple_GetSlice
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from fastbptt._kernels cimport dlpack
from fastbptt._kernels.memory cimport SMALL, Block, bytes_of

cdef extern from "Python.h":
    int Py_IsInitialized() nogil

cdef enum:
    DIMENSIONS = 4                 # at most


# --- Numbers ----------------------------------------------------------------------------------------------------------

cdef class Numbers:
    """Contiguous float32 or float64 numbers at an address, by their size in bytes; ``owner`` is held as long as somebody may look at them.

    That they are there is not checked: whoever makes one knows it.
    """
    cdef object owner
    cdef char *address
    cdef readonly tuple shape
    cdef Py_ssize_t[DIMENSIONS] lengths
    cdef Py_ssize_t[DIMENSIONS] strides
    cdef readonly Py_ssize_t itemsize
    cdef Py_ssize_t size           # in bytes
    cdef int ndim

    def __init__(self, owner, size_t address, shape, Py_ssize_t itemsize):
        fill(self, owner, <char *>address, tuple(shape), itemsize)

    def __getitem__(self, Py_ssize_t i):       # along the first axis
        if self.ndim == 0 or not 0 <= i < self.lengths[0]:
            raise IndexError(f"expected one of the first axis of {self.shape}, got {i}")
        return part_of(self, i * (self.strides[0] // self.itemsize), PyTuple_GetSlice(self.shape, 1, self.ndim))

    def part(self, Py_ssize_t first, tuple shape):
        """Those from the first-th on that make an array of this shape."""
        return part_of(self, first, shape)

    def parts(self, tuple parts):
        """`part` of each (first, shape); None stays."""
        return [None if part is None else part_of(self, part[0], part[1]) for part in parts]

    def begin(self, Py_ssize_t count, Numbers numbers=None):
        """The first of them, so many, become these; or 0."""
        cdef Py_ssize_t size = count * self.itemsize
        if not 0 <= size <= self.size or (numbers is not None and (numbers.size != size or numbers.itemsize != self.itemsize)):
            raise ValueError(f"expected {count} numbers for the first of {self.shape}, got {None if numbers is None else numbers.shape}")
        if numbers is None:
            memset(self.address, 0, size)
        else:
            memcpy(self.address, numbers.address, size)

    def copy(self):
        cdef Numbers other = empty(self.shape, self.itemsize)
        memcpy(other.address, self.address, self.size)
        return other

    def __getbuffer__(self, Py_buffer *view, int flags):
        view.obj = self
        view.buf = self.address
        view.len = self.size
        view.itemsize = self.itemsize
        view.readonly = 0
        view.format = "f" if self.itemsize == 4 else "d"
        view.ndim = self.ndim
        view.shape = self.lengths
        view.strides = self.strides
        view.suboffsets = NULL
        view.internal = NULL


cdef int fill(Numbers numbers, owner, char *address, tuple shape, Py_ssize_t itemsize) except -1:
    cdef int i
    if len(shape) > DIMENSIONS or (itemsize != 4 and itemsize != 8):
        raise ValueError(f"shape, itemsize: expected at most {DIMENSIONS} dimensions of 4 or 8 bytes, got {shape} of {itemsize}")
    numbers.owner, numbers.address, numbers.shape, numbers.itemsize, numbers.size = owner, address, shape, itemsize, itemsize
    numbers.ndim = <int>len(shape)
    for i in range(numbers.ndim - 1, -1, -1):
        numbers.lengths[i] = shape[i]
        numbers.strides[i] = numbers.size
        numbers.size *= numbers.lengths[i]
    return 0


cdef Numbers part_of(Numbers numbers, Py_ssize_t first, tuple shape):
    cdef Numbers part = Numbers.__new__(Numbers)
    fill(part, numbers.owner, numbers.address + first * numbers.itemsize, shape, numbers.itemsize)
    if first < 0 or first * numbers.itemsize + part.size > numbers.size:
        raise ValueError(f"first, shape: expected a part of {numbers.shape}, got {shape} from {first} on")
    return part


cpdef Numbers empty(tuple shape, Py_ssize_t itemsize):
    """Room for as many as this shape has, on recycled memory if it is large."""
    cdef Numbers numbers = Numbers.__new__(Numbers)
    cdef double size = bytes_of(shape, itemsize)
    if size > 2.0 ** 62:
        raise MemoryError(f"no memory for {shape} numbers")
    if size < SMALL:
        owner = PyByteArray_FromStringAndSize(NULL, <Py_ssize_t>size)
        fill(numbers, owner, PyByteArray_AsString(owner), shape, itemsize)
    else:
        owner = Block(<size_t>size)
        fill(numbers, owner, <char *>(<Block>owner).at, shape, itemsize)
    return numbers


def zeros(tuple shape, Py_ssize_t itemsize):
    cdef Numbers numbers = empty(shape, itemsize)
    memset(numbers.address, 0, numbers.size)
    return numbers


def of_array(array):
    """An array's, which is contiguous."""
    cdef Numbers numbers = Numbers.__new__(Numbers)
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_WRITABLE)
    try:
        fill(numbers, array, <char *>view.buf, array.shape, array.itemsize)
    finally:
        PyBuffer_Release(&view)
    return numbers


# --- Tensors ----------------------------------------------------------------------------------------------------------

cdef class Tensors:
    """A library's tensors.

    Parameters
    ----------
    table : capsule
        ``__dlpack_c_exchange_api__`` of their class.
    kinds : tuple of type
        The classes whose objects can be numbers in memory and nothing else.
    """
    cdef const dlpack.Exchange *table
    cdef object capsule
    cdef tuple kinds

    def __init__(self, table, tuple kinds):
        self.table = <const dlpack.Exchange *>PyCapsule_GetPointer(table, "dlpack_exchange_api")
        if self.table.major != dlpack.MAJOR or self.table.tensor_from_object == NULL:
            raise ImportError(f"expected DLPack's exchange of version {dlpack.MAJOR}, got {self.table.major}.{self.table.minor}")
        self.capsule, self.kinds = table, kinds

    def plain(self, tensor, Py_ssize_t itemsize):
        """Whether it is floats of this size in this machine's memory, and nothing else."""
        return is_plain(self, tensor, itemsize, None)

    def all_plain(self, tensors, Py_ssize_t itemsize, shapes):
        """Whether each is, and of its shape; None is."""
        for tensor, shape in zip(tensors, shapes):
            if tensor is not None and not is_plain(self, tensor, itemsize, shape):
                return False
        return True

    def resolved(self, tensors):
        """Saved ones, of which hooks may have made negative views: each as its numbers are to be read; None stays."""
        return [tensor.resolve_neg() if tensor is not None and tensor.is_neg() else tensor for tensor in tensors]

    def borrow(self, tensor, tuple shape=None):
        """The numbers of a tensor that is plain, in its shape or another of the same size; copied, once, unless they are contiguous and
        aligned.
        """
        return borrowed(self, tensor, shape)

    def borrow_all(self, tensors, shapes):
        """`borrow` of each; None stays."""
        return [None if tensor is None else borrowed(self, tensor, shape) for tensor, shape in zip(tensors, shapes)]

    def borrow_some(self, tensors, shapes, order):
        """`borrow` of those with these indices; None stays."""
        return [None if i is None else borrowed(self, tensors[i], shapes[i]) for i in order]

    def lend(self, Numbers numbers):
        """A tensor of these numbers."""
        cdef Lent *lent = <Lent *>malloc(sizeof(Lent))
        cdef dlpack.Tensor *tensor
        cdef void *found
        cdef int i
        if lent == NULL:
            raise MemoryError
        tensor = &lent.managed.tensor
        lent.managed.major, lent.managed.minor, lent.managed.flags = self.table.major, self.table.minor, 0
        lent.managed.manager_ctx, lent.managed.deleter = <void *><PyObject *>numbers, end_of_loan
        tensor.data, tensor.byte_offset = numbers.address, 0
        tensor.device.device_type, tensor.device.device_id = dlpack.CPU, 0
        tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes = dlpack.FLOAT, <uint8_t>(8 * numbers.itemsize), 1
        tensor.ndim, tensor.shape, tensor.strides = numbers.ndim, lent.shape, lent.strides
        for i in range(numbers.ndim):
            lent.shape[i], lent.strides[i] = numbers.lengths[i], numbers.strides[i] // numbers.itemsize
        Py_INCREF(numbers)
        as_object(self, &lent.managed, &found)
        result = <object><PyObject *>found
        Py_DECREF(result)          # that was a reference of ours
        return result


cdef struct Lent:
    dlpack.Managed managed
    int64_t[DIMENSIONS] shape
    int64_t[DIMENSIONS] strides


cdef void end_of_loan(dlpack.Managed *managed) noexcept nogil:
    """Called by whichever thread lets go of the tensor."""
    if Py_IsInitialized():
        with gil:
            Py_DECREF(<object><PyObject *>managed.manager_ctx)
    free(managed)


cdef int as_object(Tensors tensors, dlpack.Managed *managed, void **found) except -1:
    if tensors.table.managed_to_object(managed, found) != 0:
        return -1                  # with the library's error, of memory; what was lent is not freed, as the library may have done so
    return 0


cdef int look(Tensors tensors, tensor, dlpack.Tensor *seen) except -1:
    """What a tensor is; an error unless it is floats in this machine's memory."""
    if tensors.table.tensor_from_object(<void *><PyObject *>tensor, seen) != 0:
        return -1                  # with the library's error
    if not is_float(seen, 32) and not is_float(seen, 64):
        raise TypeError("tensor: expected float32 or float64 numbers in the processor's memory")
    if seen.ndim > DIMENSIONS:
        raise ValueError(f"tensor: expected at most {DIMENSIONS} dimensions, got {seen.ndim}")
    if seen.data == NULL and count_of(seen) > 0:
        raise RuntimeError("tensor: its memory has been freed")
    seen.data = <char *>seen.data + seen.byte_offset
    return 0


cdef Numbers borrowed(Tensors tensors, tensor, tuple shape):
    cdef dlpack.Tensor seen
    cdef Numbers numbers = Numbers.__new__(Numbers)
    look(tensors, tensor, &seen)
    if not is_contiguous(&seen):
        tensor = tensor.detach().contiguous()
        look(tensors, tensor, &seen)
    if <size_t>seen.data % (seen.dtype.bits // 8):
        tensor = tensor.detach().clone()
        look(tensors, tensor, &seen)
    if shape is None:
        shape = tuple([seen.shape[i] for i in range(seen.ndim)])
    fill(numbers, tensor, <char *>seen.data, shape, seen.dtype.bits // 8)
    if numbers.size != count_of(&seen) * numbers.itemsize:
        raise ValueError(f"tensor: expected {shape}, or as many numbers, got {tuple(tensor.shape)}")
    return numbers


cdef bint is_plain(Tensors tensors, tensor, Py_ssize_t itemsize, tuple shape) except -1:
    cdef dlpack.Tensor seen
    if type(tensor) not in tensors.kinds:
        return False
    if tensors.table.tensor_from_object(<void *><PyObject *>tensor, &seen) != 0:
        PyErr_Clear()              # it has no memory, as what a transform makes, or more than one piece
        return False
    if not is_float(&seen, 8 * itemsize):
        return False
    if seen.data == NULL and count_of(&seen) > 0:          # freed, or never there: other transforms' tensors
        return False
    return (shape is None or has_shape(&seen, shape)) and not tensor.is_neg()


cdef inline bint is_float(const dlpack.Tensor *seen, Py_ssize_t bits) noexcept:
    """In this machine's memory."""
    return (seen.device.device_type == dlpack.CPU and seen.dtype.code == dlpack.FLOAT and seen.dtype.bits == bits
            and seen.dtype.lanes == 1)


cdef inline int64_t count_of(const dlpack.Tensor *seen) noexcept:
    cdef int64_t count = 1
    cdef int i
    for i in range(seen.ndim):
        count *= seen.shape[i]
    return count


cdef bint has_shape(const dlpack.Tensor *seen, tuple shape) except -1:
    cdef int i
    if seen.ndim != len(shape):
        return False
    for i in range(seen.ndim):
        if seen.shape[i] != <int64_t>shape[i]:
            return False
    return True


cdef bint is_contiguous(const dlpack.Tensor *seen) noexcept:
    cdef int64_t size = 1
    cdef bint touch = True
    cdef int i
    for i in range(seen.ndim - 1, -1, -1):
        if seen.shape[i] > 1:
            touch = touch and seen.strides[i] == size
        size *= seen.shape[i]
    return touch or size == 0
