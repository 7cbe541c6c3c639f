// The memory of an array that offers the buffer protocol.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <cstring>
#include <iterator>
#include <optional>

#include "storage.h"
#include "written.h"

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

    bool is_held() const { return held_; }
    const Py_buffer& view() const { return view_; }

private:
    Py_buffer view_{};
    bool held_ = false;
};

// The dtype of an array; uint16 stands for the bits of bfloat16, which the protocol lacks.
inline std::optional<DType> dtype_of(const Py_buffer& view) {
    constexpr char formats[] = {'f', 'd', 'H', 'e'};  // in the order of DType
    const char* format = view.format;
    if (format != nullptr && format[0] != '\0' && format[1] == '\0') {
        for (std::size_t i = 0; i < std::size(formats); ++i) {
            if (format[0] == formats[i]) {
                return static_cast<DType>(i);
            }
        }
    }
    return std::nullopt;
}

inline bool is_of(const Py_buffer& view, Element element) {
    std::optional<DType> dtype = dtype_of(view);
    return dtype && row_of(*dtype) == element;
}

inline bool is_int64(const Py_buffer& view) {
    const char* format = view.format;
    bool is_signed = format != nullptr && (format[0] == 'l' || format[0] == 'q');
    return is_signed && format[1] == '\0' && view.itemsize == 8;
}

inline bool same_shape(const Py_buffer& a, const Py_buffer& b) {
    return a.ndim == b.ndim &&
           (a.ndim == 0 || std::memcmp(a.shape, b.shape, sizeof(*a.shape) * a.ndim) == 0);
}

inline Span span_of(const Py_buffer& view) {
    auto start = reinterpret_cast<std::uintptr_t>(view.buf);
    return {start, start + view.len};
}

}  // namespace adamas
