// The part of the DLPack C exchange API that reads a tensor's description:
// dmlc/dlpack, dlpack.h, version 1.3. Offered by a tensor type as the capsule
// __dlpack_c_exchange_api__ with the name "dlpack_exchange_api". No package has that header alone,
// so sizes and offsets are asserted below as it lays them out, and a test compares both with
// the copy that torch installs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

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

// The ABI of version 1, on every 64-bit machine; adamas is built for no other.
#define ADAMAS_AT(type, member, offset) static_assert(offsetof(type, member) == offset)

static_assert(sizeof(Device) == 8 && std::is_standard_layout_v<Device>);
ADAMAS_AT(Device, device_type, 0);
ADAMAS_AT(Device, device_id, 4);

static_assert(sizeof(DataType) == 4 && std::is_standard_layout_v<DataType>);
ADAMAS_AT(DataType, code, 0);
ADAMAS_AT(DataType, bits, 1);
ADAMAS_AT(DataType, lanes, 2);

static_assert(sizeof(Tensor) == 48 && std::is_standard_layout_v<Tensor>);
ADAMAS_AT(Tensor, data, 0);
ADAMAS_AT(Tensor, device, 8);
ADAMAS_AT(Tensor, ndim, 16);
ADAMAS_AT(Tensor, dtype, 20);
ADAMAS_AT(Tensor, shape, 24);
ADAMAS_AT(Tensor, strides, 32);
ADAMAS_AT(Tensor, byte_offset, 40);

static_assert(sizeof(Version) == 8 && std::is_standard_layout_v<Version>);
ADAMAS_AT(Version, major, 0);
ADAMAS_AT(Version, minor, 4);

static_assert(sizeof(ExchangeApi) == 56 && std::is_standard_layout_v<ExchangeApi>);
ADAMAS_AT(ExchangeApi, version, 0);
ADAMAS_AT(ExchangeApi, older, 8);
ADAMAS_AT(ExchangeApi, managed_tensor_allocator, 16);
ADAMAS_AT(ExchangeApi, managed_tensor_from_py_object_no_sync, 24);
ADAMAS_AT(ExchangeApi, managed_tensor_to_py_object_no_sync, 32);
ADAMAS_AT(ExchangeApi, tensor_from_py_object_no_sync, 40);
ADAMAS_AT(ExchangeApi, current_work_stream, 48);

#undef ADAMAS_AT

}  // namespace adamas::dlpack
