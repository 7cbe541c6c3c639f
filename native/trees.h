// Two trees of containers, leaf by leaf.
#pragma once

#include <Python.h>

namespace adamas {

inline bool is_plain_dict(PyObject* object) {
    return PyDict_CheckExact(object) ||
           (PyDict_Check(object) && Py_TYPE(object)->tp_as_mapping->mp_subscript ==
                                        PyDict_Type.tp_as_mapping->mp_subscript);
}

inline bool is_sequence(PyObject* object) {
    return PyList_CheckExact(object) || PyTuple_CheckExact(object);
}

// Calls leaf(one of `like`, its twin in `tree`) in the order of `like`; false where a call gives
// that, or the trees are not built alike. Takes lists and tuples, and dicts that are asked as dicts
// are (OrderedDict too: values are found by their keys, in whatever order); others may run
// anything.
template <class Leaf>
bool match(PyObject* like, PyObject* tree, Leaf& leaf, int depth = 0) {
    if (depth > 100) {
        return false;
    }
    if (is_plain_dict(like)) {
        if (!is_plain_dict(tree) || PyDict_GET_SIZE(tree) != PyDict_GET_SIZE(like)) {
            return false;
        }
        Py_ssize_t at = 0;
        PyObject *key, *branch;
        while (PyDict_Next(like, &at, &key, &branch)) {
            if (!PyUnicode_CheckExact(key) && !PyLong_CheckExact(key)) {
                return false;
            }
            PyObject* twin = PyDict_GetItemWithError(tree, key);
            if (twin == nullptr) {
                PyErr_Clear();
                return false;
            }
            if (!match(branch, twin, leaf, depth + 1)) {
                return false;
            }
        }
        return true;
    }
    if (is_sequence(like)) {
        Py_ssize_t length = PySequence_Fast_GET_SIZE(like);
        if (!is_sequence(tree) || PySequence_Fast_GET_SIZE(tree) != length) {
            return false;
        }
        for (Py_ssize_t i = 0; i < length; ++i) {
            if (!match(PySequence_Fast_GET_ITEM(like, i), PySequence_Fast_GET_ITEM(tree, i), leaf,
                       depth + 1)) {
                return false;
            }
        }
        return true;
    }
    return leaf(like, tree);
}

}  // namespace adamas
