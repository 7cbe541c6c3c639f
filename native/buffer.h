// The memory of an array that offers the buffer protocol.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <cstring>
#include <optional>

#include "kernels.h"

namespace adamas {

// The memory of an array, held for as long as the object lives.
class Buffer {
public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    Buffer(Buffer&& other) noexcept : view_(other.view_), held_(other.held_) {
        other.held_ = false;
    }
    ~Buffer() { release(); }

    // Returns false, with no Python error set, where the object offers no such memory.
    bool acquire(PyObject* object, int flags) {
        release();
        held_ = PyObject_GetBuffer(object, &view_, flags) == 0;
        if (!held_) {
            PyErr_Clear();
        }
        return held_;
    }

    void release() {
        if (held_) {
            PyBuffer_Release(&view_);
            held_ = false;
        }
    }

    const Py_buffer& view() const { return view_; }

private:
    Py_buffer view_{};
    bool held_ = false;
};

// The dtype of an array; uint16 stands for the bits of bfloat16, which the protocol lacks.
inline std::optional<DType> dtype_of(const Py_buffer& view) {
    if (view.format == nullptr || view.format[0] == '\0' || view.format[1] != '\0') {
        return std::nullopt;
    }
    switch (view.format[0]) {
        case 'f':
            return DType::float32;
        case 'd':
            return DType::float64;
        case 'e':
            return DType::float16;
        case 'H':
            return DType::bfloat16;
        default:
            return std::nullopt;
    }
}

inline bool same_shape(const Py_buffer& a, const Py_buffer& b) {
    return a.ndim == b.ndim &&
           (a.ndim == 0 || std::memcmp(a.shape, b.shape, sizeof(*a.shape) * a.ndim) == 0);
}

inline std::uintptr_t start(const Py_buffer& view) {
    return reinterpret_cast<std::uintptr_t>(view.buf);
}
inline std::uintptr_t end(const Py_buffer& view) { return start(view) + view.len; }

}  // namespace adamas
