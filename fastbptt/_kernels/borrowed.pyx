"""Another library's memory, as the kernels take an array.

PyTorch takes some 3 us to make a NumPy array of a tensor, and 0.1 to say where its numbers are. A small forward and backward pass has a
dozen tensors.
"""

cdef enum:
    DIMENSIONS = 4                 # at most


cdef class Borrowed:
    """Contiguous float32 or float64 numbers at an address, by their size in bytes; ``owner`` is held as long as somebody may look at them.

    Nothing is checked: the caller knows that they are there.
    """
    cdef object owner
    cdef void *address
    cdef readonly tuple shape
    cdef Py_ssize_t lengths[DIMENSIONS]
    cdef Py_ssize_t strides[DIMENSIONS]
    cdef Py_ssize_t itemsize, size
    cdef int ndim

    def __init__(self, owner, size_t address, shape, Py_ssize_t itemsize):
        fill(self, owner, address, tuple(shape), itemsize)

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


cdef int fill(Borrowed numbers, owner, size_t address, tuple shape, Py_ssize_t itemsize) except -1:
    cdef int i
    if len(shape) > DIMENSIONS or (itemsize != 4 and itemsize != 8):
        raise ValueError(f"shape, itemsize: expected at most {DIMENSIONS} dimensions of 4 or 8 bytes, got {shape} of {itemsize}")
    numbers.owner, numbers.address, numbers.shape, numbers.itemsize, numbers.size = owner, <void *>address, shape, itemsize, itemsize
    numbers.ndim = <int>len(shape)
    for i in range(numbers.ndim - 1, -1, -1):
        numbers.lengths[i] = shape[i]
        numbers.strides[i] = numbers.size
        numbers.size *= numbers.lengths[i]
    return 0


def borrow(tensor, shape=None):
    """A PyTorch tensor's numbers, contiguous and aligned, in its shape or another of the same size; copied, once, only if they are not.

    It is float32 or float64.
    """
    cdef Py_ssize_t itemsize = tensor.itemsize
    cdef size_t address
    cdef Borrowed numbers
    if not tensor.is_contiguous():
        tensor = tensor.detach().contiguous()
    address = tensor.data_ptr()
    if address % itemsize:
        tensor = tensor.detach().clone()
        address = tensor.data_ptr()
    numbers = Borrowed.__new__(Borrowed)    # a call of the class takes twice as long
    fill(numbers, tensor, address, tuple(tensor.shape if shape is None else shape), itemsize)
    return numbers


def borrow_all(tensors):
    """`borrow` of each; None stays."""
    return [None if tensor is None else borrow(tensor) for tensor in tensors]
