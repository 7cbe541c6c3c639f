// The name of an attribute, whose text is made once: looking it up takes half the time then.
#pragma once

#include <nanobind/nanobind.h>

namespace adamas {

// For names that live as long as the process.
class Name {
public:
    explicit Name(const char* text) : text_(PyUnicode_InternFromString(text)) {
        if (text_ == nullptr) {
            throw nanobind::python_error();
        }
    }

    nanobind::object of(nanobind::handle object) const {
        auto found = nanobind::steal<nanobind::object>(PyObject_GetAttr(object.ptr(), text_));
        if (!found.is_valid()) {
            throw nanobind::python_error();
        }
        return found;
    }

    // The same, or nothing where there is no such attribute.
    nanobind::object if_any(nanobind::handle object) const {
        auto found = nanobind::steal<nanobind::object>(PyObject_GetAttr(object.ptr(), text_));
        if (!found.is_valid()) {
            if (!PyErr_ExceptionMatches(PyExc_AttributeError)) {
                throw nanobind::python_error();
            }
            PyErr_Clear();
        }
        return found;
    }

    PyObject* text() const { return text_; }

private:
    PyObject* text_;
};

}  // namespace adamas
