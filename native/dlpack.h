// The part of the DLPack C exchange API that reads a tensor's description:
// dmlc/dlpack, dlpack.h, version 1.3. Offered by a tensor type as the capsule
// __dlpack_c_exchange_api__ with the name "dlpack_exchange_api".
#pragma once

#include <cstdint>

namespace adamas::dlpack {

constexpr std::int32_t cpu = 1;          // device_type
constexpr std::uint8_t int_code = 0;     // of DataType
constexpr std::uint8_t uint_code = 1;    // the same
constexpr std::uint8_t float_code = 2;   // the same
constexpr std::uint8_t bfloat_code = 4;  // the same
constexpr std::uint32_t major_version = 1;

struct Device {
    std::int32_t device_type;
    std::int32_t device_id;
};

struct DataType {
    std::uint8_t code;
    std::uint8_t bits;
    std::uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    std::int32_t ndim;
    DataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;
    std::uint64_t byte_offset;
};

struct Version {
    std::uint32_t major;
    std::uint32_t minor;
};

struct ExchangeApi {
    Version version;
    ExchangeApi* older;  // other major versions
    void (*managed_tensor_allocator)();
    void (*managed_tensor_from_py_object_no_sync)();
    void (*managed_tensor_to_py_object_no_sync)();
    // Returns 0, or -1 with a Python error set. The description is valid while the object is.
    int (*tensor_from_py_object_no_sync)(void* object, Tensor* out);
    void (*current_work_stream)();
};

}  // namespace adamas::dlpack
