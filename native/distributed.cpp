#include "distributed.h"

#include <structmember.h>

namespace nb = nanobind;

namespace adamas {

Distributed::Distributed(nb::handle given) {
    if (given.is_none()) {
        return;
    }
    type_ = nb::getattr(given, "kind");
    are_alike_ = nb::getattr(given, "are_alike");
    guard_type_ = nb::getattr(given, "unasked");
    part_.find(type_);
    spec_.find(type_);
}

// Torch declares both as slots. Reading one is a load then, where Python is not free-threaded.
void Distributed::Field::find(nb::handle type) {
#if !defined(Py_GIL_DISABLED)
    auto found = nb::steal(PyObject_GetAttr(type.ptr(), name.text()));
    if (!found.is_valid()) {
        PyErr_Clear();
        return;
    }
    if (Py_TYPE(found.ptr()) == &PyMemberDescr_Type) {
        const PyMemberDef* member = reinterpret_cast<PyMemberDescrObject*>(found.ptr())->d_member;
        if (member->type == T_OBJECT_EX && member->offset > 0) {
            place = static_cast<std::size_t>(member->offset);
        }
    }
#endif
}

Distributed::Unasked::Unasked(const Distributed& distributed) {
    if (distributed.guard_type_.is_valid() && !distributed.guard_type_.is_none()) {
        guard_ = distributed.guard_type_();
        guard_.attr("__enter__")();
    }
}

Distributed::Unasked::~Unasked() {
    if (guard_.is_valid()) {
        nb::error_scope kept;  // an error that is on its way
        guard_.attr("__exit__")(nb::none(), nb::none(), nb::none());
    }
}

int Distributed::traverse(visitproc visit, void* arg) const {
    for (const nb::object* each : {&type_, &are_alike_, &guard_type_}) {
        if (each->is_valid()) {
            int stop = visit(each->ptr(), arg);
            if (stop != 0) {
                return stop;
            }
        }
    }
    return 0;
}

}  // namespace adamas
