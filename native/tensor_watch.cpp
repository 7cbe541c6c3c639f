#include "tensor_watch.h"

#include <stdexcept>
#include <string>

#include "bindings.h"
#include "buffer.h"
#include "name.h"

namespace nb = nanobind;

namespace adamas {
namespace {

struct Names {
    Name grad{"grad"}, lr{"lr"}, is_neg{"is_neg"};
};

const Names& names() {
    static const Names all;
    return all;
}

}  // namespace

// -- a dict --------------------------------------------------------------------------------------

WatchedDict::WatchedDict(nb::dict dict) : dict_(std::move(dict)) {
    for (auto [key, value] : dict_) {
        items_.emplace_back(nb::borrow<nb::object>(key), nb::borrow<nb::object>(value));
    }
    version_.take(dict_.ptr());
}

bool WatchedDict::has_same_items(PyObject* free_key) const {
    if (static_cast<std::size_t>(PyDict_Size(dict_.ptr())) != items_.size()) {
        return false;
    }
    Py_ssize_t position = 0;
    PyObject *key, *value;
    for (auto& [known_key, known_value] : items_) {
        if (!PyDict_Next(dict_.ptr(), &position, &key, &value) || key != known_key.ptr() ||
            (value != known_value.ptr() && key != free_key)) {
            return false;
        }
    }
    version_.take(dict_.ptr());
    return true;
}

int WatchedDict::traverse(visitproc visit, void* arg) const {
    Py_VISIT(dict_.ptr());
    for (auto& [key, value] : items_) {
        Py_VISIT(key.ptr());
        Py_VISIT(value.ptr());
    }
    return 0;
}

// -- what is watched -----------------------------------------------------------------------------

TensorWatch::TensorWatch(nb::handle tensor_type, nb::handle parameter_type, nb::list groups,
                         nb::sequence idle, nb::handle distributed)
    : reader_(tensor_type),
      distributed_(distributed),
      tensor_type_(nb::borrow<nb::object>(tensor_type)),
      parameter_type_(nb::borrow<nb::object>(parameter_type)) {
    for (nb::handle each : groups) {
        auto options = nb::cast<nb::dict>(each);
        Group group{WatchedDict(options), nb::cast<nb::list>(options["params"])};
        for (nb::handle parameter : group.parameters) {
            parameters_.push_back(nb::borrow<nb::object>(parameter));
        }
        groups_.push_back(std::move(group));
    }
    for (nb::handle parameter : idle) {
        idle_.push_back(nb::borrow<nb::object>(parameter));
    }
}

TensorWatch::TensorWatch(nb::type_object tensor_type, nb::type_object parameter_type,
                         nb::list groups, nb::sequence members, nb::sequence idle,
                         nb::object distributed)
    : TensorWatch(nb::handle(tensor_type), nb::handle(parameter_type), std::move(groups),
                  std::move(idle), distributed) {
    for (nb::handle member : members) {
        add(member[0], nb::cast<nb::dict>(member[1]));
        for (auto& [key, value] : members_.back().state.items()) {
            View view;
            if (distributed_.has(value.ptr())) {
                keep(value, read(value));
            } else if (is_plain(value.ptr()) && reader_.read(value.ptr(), view)) {
                keep(value, view);
            }
        }
        for (nb::handle tensor : nb::object(member[2])) {
            keep(nb::borrow<nb::object>(tensor));
        }
    }
}

View TensorWatch::add(nb::object parameter, nb::dict state, bool is_always_read) {
    View view = read(parameter);
    written_.add(view.span());
    WatchedDict watched(std::move(state));
    if (!watched.items().empty()) {
        stateful_.push_back(members_.size());
    }
    nb::object spec;
    if (distributed_.has(parameter.ptr())) {
        nb::object held;
        spec = nb::borrow(distributed_.spec(parameter.ptr(), held));
    }
    members_.push_back(
        {std::move(parameter), view, std::move(spec), std::move(watched), {}, is_always_read});
    gradients_.emplace_back();
    return view;
}

View TensorWatch::keep(nb::object tensor) {
    View view = read(tensor);
    keep(tensor, view);
    return view;
}

void TensorWatch::keep(nb::handle tensor, const View& view) {
    members_.back().entries.push_back({nb::borrow<nb::object>(tensor), view.data});
    written_.add(view.span());
}

View TensorWatch::read(nb::handle tensor) {
    View view;
    bool is_read;
    if (distributed_.has(tensor.ptr())) {
        nb::object held;
        PyObject* part = distributed_.part(tensor.ptr(), held);
        is_read = is_plain(part) && reader_.read(part, view);
    } else {
        is_read = reader_.read(tensor.ptr(), view);
    }
    if (!is_read) {
        throw std::invalid_argument("A plan needs plain tensors.");
    }
    return view;
}

std::int64_t TensorWatch::version(std::size_t i) {
    PyObject* parameter = members_[i].parameter.ptr();
    std::int64_t version = reader_.version(parameter);
    if (distributed_.has(parameter)) {
        nb::object held;
        version += reader_.version(distributed_.part(parameter, held));
    }
    return version;
}

bool TensorWatch::is_plain(PyObject* object) const {
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    return type == tensor_type_.ptr() || type == parameter_type_.ptr();
}

int TensorWatch::traverse(visitproc visit, void* arg) const {
    int stop = 0;
    auto see = [&](const nb::object& object) {
        if (stop == 0 && object.is_valid()) {
            stop = visit(object.ptr(), arg);
        }
    };
    auto see_dict = [&](const WatchedDict& dict) {
        stop = stop == 0 ? dict.traverse(visit, arg) : stop;
    };
    for (const Group& group : groups_) {
        see_dict(group.options);
        see(group.parameters);
    }
    for (const Member& member : members_) {
        see(member.parameter);
        see(member.spec);
        see_dict(member.state);
        for (const Entry& entry : member.entries) {
            see(entry.tensor);
        }
    }
    for (const Gradient& gradient : gradients_) {
        see(gradient.held.object());
        see(gradient.spec);
    }
    for (auto* parameters : {&parameters_, &idle_}) {
        for (const nb::object& parameter : *parameters) {
            see(parameter);
        }
    }
    return stop == 0 ? distributed_.traverse(visit, arg) : stop;
}

void TensorWatch::clear() {
    // Moved away first: what goes may look at this watch.
    auto groups = std::move(groups_);
    auto members = std::move(members_);
    auto parameters = std::move(parameters_);
    auto idle = std::move(idle_);
    auto gradients = std::move(gradients_);
    stateful_.clear();
    distributed_.clear();
}

// -- whether it is as it was ---------------------------------------------------------------------

void TensorWatch::let_go() {
    for (Gradient& gradient : gradients_) {
        gradient.held.let_go();
    }
}

bool TensorWatch::same_groups(nb::handle groups) const {
    if (!PyList_Check(groups.ptr()) ||
        static_cast<std::size_t>(PyList_GET_SIZE(groups.ptr())) != groups_.size()) {
        return false;
    }
    std::size_t at = 0;
    for (std::size_t i = 0; i < groups_.size(); ++i) {
        const Group& group = groups_[i];
        PyObject* parameters = group.parameters.ptr();
        Py_ssize_t count = PyList_GET_SIZE(parameters);
        if (PyList_GET_ITEM(groups.ptr(), i) != group.options.dict().ptr() ||
            !group.options.is_same(names().lr.text()) || at + count > parameters_.size()) {
            return false;
        }
        for (Py_ssize_t j = 0; j < count; ++j) {
            if (PyList_GET_ITEM(parameters, j) != parameters_[at++].ptr()) {
                return false;
            }
        }
    }
    return at == parameters_.size();
}

bool TensorWatch::same_state(nb::handle state) {
    if (!PyDict_Check(state.ptr())) {
        return false;
    }
    if (state_version_.is_that_of(state.ptr())) {
        return true;
    }
    std::size_t found = 0;
    Py_ssize_t position = 0;
    PyObject *key, *value;
    while (found < stateful_.size() && PyDict_Next(state.ptr(), &position, &key, &value)) {
        // Others may have state of their own between the members'.
        const Member& member = members_[stateful_[found]];
        if (key == member.parameter.ptr()) {
            if (value != member.state.dict().ptr()) {
                return false;
            }
            ++found;
        }
    }
    bool is_same = found == stateful_.size();
    if (is_same) {
        state_version_.take(state.ptr());
    }
    return is_same;
}

inline bool TensorWatch::same_member(const Member& member) {
    View view;
    PyObject* parameter = member.parameter.ptr();
    bool is_read =
        is_plain(parameter) ? reader_.look(parameter, view) : same_distributed(member, view);
    if (!is_read || view.data != member.view.data || !view.is_like(member.view) ||
        !member.state.is_same()) {
        return false;
    }
    for (const Entry& entry : member.entries) {
        PyObject* tensor = entry.tensor.ptr();
        if (is_plain(tensor) ? !reader_.is_at(tensor, entry.data) : !same_entry(entry)) {
            return false;
        }
    }
    return true;
}

// Looks at the part of a parameter that was distributed when the plan was made.
bool TensorWatch::same_distributed(const Member& member, View& view) {
    PyObject* tensor = member.parameter.ptr();
    nb::object held, held_part;
    if (!distributed_.has(tensor) || distributed_.spec(tensor, held) != member.spec.ptr()) {
        return false;
    }
    PyObject* part = distributed_.part(tensor, held_part);
    return is_plain(part) && reader_.look(part, view);
}

bool TensorWatch::same_entry(const Entry& entry) {
    if (!distributed_.has(entry.tensor.ptr())) {
        return false;
    }
    nb::object held;
    PyObject* part = distributed_.part(entry.tensor.ptr(), held);
    return is_plain(part) && reader_.is_at(part, entry.data);
}

// Takes hold of what the attribute `grad` of a parameter is.
inline void TensorWatch::take_gradient(nb::handle parameter, HeldGradient& gradient) const {
    bool is_known = is_plain(parameter.ptr()) || distributed_.has(parameter.ptr());
    if (!is_known || !reader_.take_gradient(parameter.ptr(), gradient)) {
        nb::object found = names().grad.of(parameter);
        gradient.take(found.is_none() ? nb::object() : std::move(found));
    }
}

// Puts its part in place of a distributed gradient; false where that is not the part of its
// parameter.
bool TensorWatch::take_part(const Member& member, Gradient& gradient) const {
    PyObject* tensor = gradient.held.object().ptr();
    if (!member.spec.is_valid() || !distributed_.has(tensor)) {
        return false;
    }
    nb::object held;
    PyObject* spec = distributed_.spec(tensor, held);
    if (spec != member.spec.ptr() && spec != gradient.spec.ptr()) {
        nb::object kept = nb::borrow(spec);
        if (!distributed_.are_alike(member.spec, kept)) {
            return false;
        }
        gradient.spec = std::move(kept);
    }
    nb::object held_part;
    gradient.held.take(nb::borrow(distributed_.part(tensor, held_part)));
    return is_plain(gradient.held.object().ptr());
}

bool TensorWatch::same_tensors() {
    Distributed::Unasked unasked(distributed_);
    HeldGradient of_idle;
    for (const nb::object& parameter : idle_) {
        take_gradient(parameter, of_idle);
        if (!of_idle.is_none()) {
            return false;
        }
    }
    for (std::size_t i = 0; i < members_.size(); ++i) {
        const Member& member = members_[i];
        Gradient& gradient = gradients_[i];
        take_gradient(member.parameter, gradient.held);
        bool is_absent = gradient.held.is_none();
        if ((!is_absent || member.is_always_read) && !same_member(member)) {
            return false;
        }
        if (is_absent) {
            continue;
        }
        View view;
        if (!look_at_gradient(member, gradient, view) || !view.is_like(member.view) ||
            !written_.is_apart(view.span(), gradient.free) || !has_values(gradient.held, view)) {
            return false;
        }
        gradient.data = view.data;
    }
    return true;
}

// False where it is no plain gradient, or distributed otherwise than its parameter.
inline bool TensorWatch::look_at_gradient(const Member& member, Gradient& gradient, View& view) {
    HeldGradient& held = gradient.held;
    if (held.handle() != nullptr) {  // plain: others always have an object
        if (!member.spec.is_valid() && reader_.look(held, view) && view.count != 1) [[likely]] {
            return true;
        }
        held.take(names().grad.of(member.parameter));
    }
    bool is_part =
        is_plain(held.object().ptr()) ? !member.spec.is_valid() : take_part(member, gradient);
    return is_part && reader_.look(held.object().ptr(), view);
}

// Whether the memory of a gradient is there, and has its values. A negated view (`z.conj().imag`)
// does not: it steps over real parts, so only one of one element has strides as a parameter has.
// torch's private `_neg_view` makes others. They are not asked for: neither DLPack nor the stable
// ABI tells of the sign, and asking in Python takes a tenth of a small step for each tensor.
inline bool TensorWatch::has_values(const HeldGradient& gradient, const View& view) const {
    if (view.data == nullptr) [[unlikely]] {
        return view.count == 0;
    }
    return view.count != 1 || !nb::cast<bool>(names().is_neg.of(gradient.object())());
}

bool TensorWatch::gradients(nb::handle groups, nb::handle state, nb::handle addresses) {
    Turn<TensorWatch> turn(*this);
    Buffer memory;
    if (!memory.acquire(addresses.ptr(), PyBUF_WRITABLE | PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) ||
        !is_int64(memory.view()) ||
        static_cast<std::size_t>(memory.view().len) != members_.size() * sizeof(std::int64_t)) {
        throw std::invalid_argument("The addresses need a writable, C-contiguous int64 array of " +
                                    std::to_string(members_.size()) +
                                    " elements, one for each member.");
    }
    if (!same_groups(groups) || !same_state(state) || !same_tensors()) {
        return false;
    }
    for (const Gradient& gradient : gradients_) {
        if (gradient.held.is_none()) {
            return false;
        }
    }
    auto* into = static_cast<std::int64_t*>(memory.view().buf);
    for (const Gradient& gradient : gradients_) {
        *into++ = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(gradient.data));
    }
    return true;
}

void bind_tensor_watch(nb::module_& module) {
    nb::class_<TensorWatch>(
        module, "TensorWatch", nb::type_slots(collected<TensorWatch>),
        "Whether the tensors of a torch.optim.Optimizer are those a plan was made for.")
        .def(nb::init<nb::type_object, nb::type_object, nb::list, nb::sequence, nb::sequence,
                      nb::object>(),
             nb::arg("tensor_type"), nb::arg("parameter_type"), nb::arg("groups"),
             nb::arg("members"), nb::arg("idle"), nb::arg("distributed") = nb::none())
        .def("gradients", &TensorWatch::gradients, nb::arg("groups"), nb::arg("state"),
             nb::arg("addresses"),
             "Whether all is as it was; writes the addresses of the gradients.")
        .def_prop_ro("is_fast", &TensorWatch::is_fast,
                     "Whether addresses come through the DLPack exchange API.");
}

}  // namespace adamas
