"""DLPack's structs, as version 1.3 of its header has them (``dlpack/dlpack.h``), and the table of C functions by which a library exchanges
its tensors: the capsule ``__dlpack_c_exchange_api__`` of their class. They are a standard, and stay as they are within major version 1.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    typedef struct { int32_t device_type, device_id; } fastbptt_device;
    typedef struct { uint8_t code, bits; uint16_t lanes; } fastbptt_dtype;
    typedef struct {
        void *data;
        fastbptt_device device;
        int32_t ndim;
        fastbptt_dtype dtype;
        int64_t *shape, *strides;
        uint64_t byte_offset;
    } fastbptt_tensor;
    typedef struct fastbptt_managed {
        uint32_t major, minor;
        void *manager_ctx;
        void (*deleter)(struct fastbptt_managed *self);
        uint64_t flags;
        fastbptt_tensor tensor;
    } fastbptt_managed;
    typedef struct fastbptt_exchange {
        uint32_t major, minor;
        struct fastbptt_exchange *older;
        int (*allocate)(fastbptt_tensor *, fastbptt_managed **, void *, void (*)(void *, const char *, const char *));
        int (*managed_from_object)(void *, fastbptt_managed **);
        int (*managed_to_object)(fastbptt_managed *, void **);
        int (*tensor_from_object)(void *, fastbptt_tensor *);
        int (*current_stream)(int32_t, int32_t, void **);
    } fastbptt_exchange;
    """
    ctypedef struct Device "fastbptt_device":
        int32_t device_type
        int32_t device_id
    ctypedef struct DataType "fastbptt_dtype":
        uint8_t code
        uint8_t bits
        uint16_t lanes
    ctypedef struct Tensor "fastbptt_tensor":
        void *data
        Device device
        int32_t ndim
        DataType dtype
        int64_t *shape
        int64_t *strides           # in elements
        uint64_t byte_offset
    ctypedef struct Managed "fastbptt_managed":
        uint32_t major
        uint32_t minor
        void *manager_ctx
        void (*deleter)(Managed *self) noexcept
        uint64_t flags
        Tensor tensor
    ctypedef struct Exchange "fastbptt_exchange":
        uint32_t major
        uint32_t minor
        int (*managed_to_object)(Managed *managed, void **found) noexcept     # both: -1 with an exception set
        int (*tensor_from_object)(void *object, Tensor *found) noexcept       # of the very class that has the table

cdef enum:
    MAJOR = 1
    CPU = 1                        # device_type
    FLOAT = 2                      # code
