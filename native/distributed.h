// What a process has of tensors that are spread over processes: torch's DTensor.
//
// A DTensor wraps a plain tensor, this process's part, and a spec: mesh, placements and the whole
// shape. A step is about the part alone, so plans look at that and call nothing of the wrapper:
// each operation of a DTensor takes longer than the step of a small tensor.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>

#include "name.h"

namespace adamas {

class Distributed {
public:
    // `given` is the Distributed of adamas.engines.native, or None where there is none of them.
    explicit Distributed(nanobind::handle given);

    // Whether an object is such a tensor itself; those of derived classes may be anything.
    bool has(PyObject* object) const {
        return reinterpret_cast<PyObject*>(Py_TYPE(object)) == type_.ptr();
    }

    // Of such a tensor, as it is now; `held` keeps it where the tensor does not.
    PyObject* part(PyObject* tensor, nanobind::object& held) const {
        return part_.of(tensor, held);
    }
    PyObject* spec(PyObject* tensor, nanobind::object& held) const {
        return spec_.of(tensor, held);
    }

    // Whether what has one spec is spread over processes as what has the other.
    bool are_alike(nanobind::handle spec, nanobind::handle other) const {
        return nanobind::cast<bool>(are_alike_(spec, other));
    }

    // While it lives, torch does not ask the type of each tensor for its __torch_function__, which
    // takes longer than reading an attribute. Nothing is done where there are no such tensors.
    class Unasked {
    public:
        explicit Unasked(const Distributed& distributed);
        Unasked(const Unasked&) = delete;
        Unasked& operator=(const Unasked&) = delete;
        ~Unasked();

    private:
        nanobind::object guard_;
    };

    int traverse(visitproc visit, void* arg) const;
    void clear() { are_alike_.reset(); }

private:
    // An attribute, and where in an object it stands.
    struct Field {
        Name name;
        std::size_t place = 0;  // 0: it is asked for by name

        void find(nanobind::handle type);
        PyObject* of(PyObject* tensor, nanobind::object& held) const {
            if (place != 0) [[likely]] {
                PyObject* found = *reinterpret_cast<PyObject* const*>(
                    reinterpret_cast<const char*>(tensor) + place);
                if (found != nullptr) {
                    return found;
                }
            }
            held = name.of(tensor);
            return held.ptr();
        }
    };

    nanobind::object type_, are_alike_, guard_type_;
    Field part_{Name("_local_tensor")}, spec_{Name("_spec")};
};

}  // namespace adamas
