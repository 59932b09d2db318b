"""What a handler must know of XLA's foreign function interface, version 0.3: the beginnings of its structs (``xla/ffi/api/c_api.h``).

It is an interface of C that is kept stable: a struct says how large it is, new fields come last, and what is not compatible makes another
major version. What stands here has been the same since 0.1, so jaxlib is not needed to build, and its version does not matter.
"""

from libc.stdint cimport int64_t, uint32_t

cdef enum:
    MAJOR = 0
    MINOR = 3
    OLDEST_MINOR = 1

cdef enum:                         # errors
    INVALID_ARGUMENT = 3
    INTERNAL = 13

cdef enum:                         # dtypes
    PRED = 1
    S32 = 4
    S64 = 5
    U8 = 6
    F32 = 11
    F64 = 12

cdef enum:
    METADATA = 1                   # an extension
    BUFFER = 1                     # an argument, or a result
    ARRAY = 1                      # an attribute
    EXECUTE = 3                    # a stage

cdef struct Extension:
    size_t struct_size
    int type
    Extension *next

cdef struct Version:
    size_t struct_size
    Extension *extension_start
    int major_version
    int minor_version

cdef struct Metadata:
    size_t struct_size
    Version api_version
    uint32_t traits

cdef struct MetadataExtension:
    Extension base
    Metadata *metadata

cdef struct Error                  # XLA's own

cdef struct ErrorArguments:
    size_t struct_size
    Extension *extension_start
    const char *message
    int code

cdef struct Api:
    size_t struct_size
    Extension *extension_start
    Version api_version
    const void *internal_api
    Error *(*create_error)(ErrorArguments *arguments) noexcept nogil

cdef struct Buffer:
    size_t struct_size
    Extension *extension_start
    int dtype
    void *data
    int64_t rank
    int64_t *dims

cdef struct Buffers:               # arguments, or results
    size_t struct_size
    Extension *extension_start
    int64_t size
    int *types
    void **at

cdef struct Span:
    const char *at
    size_t size

cdef struct Array:
    int dtype
    size_t size
    void *data

cdef struct Attributes:            # sorted by name
    size_t struct_size
    Extension *extension_start
    int64_t size
    int *types
    Span **names
    void **at

cdef struct CallFrame:
    size_t struct_size
    Extension *extension_start
    const Api *api
    void *context
    int stage
    Buffers arguments
    Buffers results
    Attributes attributes
