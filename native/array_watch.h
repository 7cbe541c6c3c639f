// Whether a NumPy array is still what it was when a plan was made.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstring>
#include <utility>
#include <vector>

#include "buffer.h"

namespace adamas {

// What every NumPy array begins with, as its binary interface has it since NumPy 1.0. A look at it
// costs a nanosecond, the buffer protocol fifty.
struct ArrayHead {
    PyObject object;
    char* data;
    int nd;
    Py_ssize_t* dimensions;
    Py_ssize_t* strides;
    PyObject* base;
    PyObject* descr;
    int flags;
};

// An array, and the memory, shape, strides and dtype that it had at first.
class ArrayWatch {
public:
    // `view` is the array's memory as the buffer protocol gives it: where the head says the same,
    // it can be relied on, else the protocol is asked each time. `as_bits` says that the protocol
    // knows its bits only, and not its dtype.
    ArrayWatch(nanobind::object array, const Py_buffer& view, nanobind::handle ndarray,
               bool as_bits)
        : array_(std::move(array)),
          ndarray_(ndarray.ptr()),
          data_(view.buf),
          dimensions_(view.ndim),
          as_bits_(as_bits) {
        is_array_ =
            PyObject_TypeCheck(array_.ptr(), reinterpret_cast<PyTypeObject*>(ndarray.ptr())) != 0;
        const ArrayHead& now = head();
        std::size_t bytes = sizeof(Py_ssize_t) * dimensions_;
        has_head_ = is_array_ && now.data == data_ && now.nd == dimensions_ &&
                    (bytes == 0 || std::memcmp(now.dimensions, view.shape, bytes) == 0);
        extents_.assign(view.shape, view.shape + dimensions_);
        if (has_head_) {
            descr_ = nanobind::borrow(now.descr);
            extents_.insert(extents_.end(), now.strides, now.strides + dimensions_);
        }
    }

    PyObject* array() const { return array_.ptr(); }
    PyObject* dtype() const { return descr_.ptr(); }

    // Another array as the buffer protocol can give it: itself, or a view of its bits where it has
    // the same dtype, else nothing; nothing for subclasses, whose values may not be their memory's.
    nanobind::object readable(PyObject* other) const {
        if (reinterpret_cast<PyObject*>(Py_TYPE(other)) != ndarray_ &&
            PyObject_TypeCheck(other, reinterpret_cast<PyTypeObject*>(ndarray_)) != 0) {
            return {};
        }
        if (!as_bits_) {
            return nanobind::borrow(other);
        }
        bool alike = has_head_ && reinterpret_cast<PyObject*>(Py_TYPE(other)) == ndarray_ &&
                     reinterpret_cast<ArrayHead*>(other)->descr == descr_.ptr();
        PyObject* bits = alike ? PyObject_CallMethod(other, "view", "s", "u2") : nullptr;
        PyErr_Clear();
        return nanobind::steal(bits);
    }

    // Whether it has other memory, another shape or dtype, or is read-only by now.
    bool changed() const {
        if (!has_head_) {
            return is_array_ && changed_slowly();
        }
        const ArrayHead& now = head();
        std::size_t bytes = sizeof(Py_ssize_t) * dimensions_;
        return now.data != data_ || now.nd != dimensions_ || now.descr != descr_.ptr() ||
               (now.flags & writeable) == 0 ||
               (bytes != 0 &&
                (std::memcmp(now.dimensions, extents_.data(), bytes) != 0 ||
                 std::memcmp(now.strides, extents_.data() + dimensions_, bytes) != 0));
    }

private:
    static constexpr int writeable = 0x0400;

    const ArrayHead& head() const { return *reinterpret_cast<const ArrayHead*>(array_.ptr()); }

    bool changed_slowly() const {
        Buffer buffer;
        return !buffer.acquire(array_.ptr(), PyBUF_RECORDS) || buffer.view().buf != data_ ||
               buffer.view().ndim != dimensions_ ||
               std::memcmp(buffer.view().shape, extents_.data(),
                           sizeof(Py_ssize_t) * dimensions_) != 0;
    }

    nanobind::object array_, descr_;
    PyObject* ndarray_;
    void* data_;
    int dimensions_;
    bool is_array_, has_head_, as_bits_;
    std::vector<Py_ssize_t> extents_;  // the shape, then the strides
};

}  // namespace adamas
