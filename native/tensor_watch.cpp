#include "tensor_watch.h"

#include <stdexcept>
#include <string>

#include "bindings.h"
#include "buffer.h"
#include "name.h"

namespace nb = nanobind;

namespace adamas {
namespace {

Items items_of(nb::dict dict) {
    Items items;
    for (auto [key, value] : dict) {
        items.emplace_back(nb::borrow<nb::object>(key), nb::borrow<nb::object>(value));
    }
    return items;
}

bool same_items(const Items& items, PyObject* dict, PyObject* free_key = nullptr) {
    if (static_cast<std::size_t>(PyDict_Size(dict)) != items.size()) {
        return false;
    }
    Py_ssize_t position = 0;
    PyObject *key, *value;
    for (auto& [known_key, known_value] : items) {
        if (!PyDict_Next(dict, &position, &key, &value) || key != known_key.ptr() ||
            (value != known_value.ptr() && key != free_key)) {
            return false;
        }
    }
    return true;
}

struct Names {
    Name grad{"grad"}, lr{"lr"}, is_neg{"is_neg"};
};

const Names& names() {
    static const Names all;
    return all;
}

}  // namespace

// -- what is watched -----------------------------------------------------------------------------

TensorWatch::TensorWatch(nb::handle tensor_type, nb::handle parameter_type, nb::list groups,
                         nb::sequence idle, nb::handle distributed)
    : reader_(tensor_type),
      distributed_(distributed),
      tensor_type_(nb::borrow<nb::object>(tensor_type)),
      parameter_type_(nb::borrow<nb::object>(parameter_type)) {
    for (nb::handle each : groups) {
        auto options = nb::cast<nb::dict>(each);
        Group group{options, nb::cast<nb::list>(options["params"]), items_of(options)};
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
        for (auto& [key, value] : members_.back().items) {
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
    Items items = items_of(state);
    if (!items.empty()) {
        stateful_.push_back(members_.size());
    }
    nb::object spec;
    if (distributed_.has(parameter.ptr())) {
        nb::object held;
        spec = nb::borrow(distributed_.spec(parameter.ptr(), held));
    }
    members_.push_back({std::move(parameter),
                        view,
                        std::move(spec),
                        std::move(state),
                        std::move(items),
                        {},
                        is_always_read});
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
    auto see_items = [&](const Items& items) {
        for (auto& [key, value] : items) {
            see(key);
            see(value);
        }
    };
    for (const Group& group : groups_) {
        see(group.options);
        see(group.parameters);
        see_items(group.items);
    }
    for (const Member& member : members_) {
        see(member.parameter);
        see(member.spec);
        see(member.state);
        see_items(member.items);
        for (const Entry& entry : member.entries) {
            see(entry.tensor);
        }
    }
    for (const Gradient& gradient : gradients_) {
        see(gradient.tensor);
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
        gradient.tensor.reset();
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
        if (PyList_GET_ITEM(groups.ptr(), i) != group.options.ptr() ||
            !same_items(group.items, group.options.ptr(), names().lr.text()) ||
            at + count > parameters_.size()) {
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

bool TensorWatch::same_state(nb::handle state) const {
    if (!PyDict_Check(state.ptr())) {
        return false;
    }
    std::size_t found = 0;
    Py_ssize_t position = 0;
    PyObject *key, *value;
    while (found < stateful_.size() && PyDict_Next(state.ptr(), &position, &key, &value)) {
        // Others may have state of their own between the members'.
        const Member& member = members_[stateful_[found]];
        if (key == member.parameter.ptr()) {
            if (value != member.state.ptr()) {
                return false;
            }
            ++found;
        }
    }
    return found == stateful_.size();
}

inline bool TensorWatch::same_member(const Member& member) {
    View view;
    PyObject* parameter = member.parameter.ptr();
    bool is_read =
        is_plain(parameter) ? reader_.look(parameter, view) : same_distributed(member, view);
    if (!is_read || view.data != member.view.data || !view.is_like(member.view) ||
        !same_items(member.items, member.state.ptr())) {
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

// Puts its part in place of a distributed gradient; false where that is not the part of its
// parameter.
bool TensorWatch::take_part(const Member& member, Gradient& gradient) const {
    PyObject* tensor = gradient.tensor.ptr();
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
    gradient.tensor = nb::borrow(distributed_.part(tensor, held_part));
    return is_plain(gradient.tensor.ptr());
}

bool TensorWatch::same_tensors() {
    const Name& grad = names().grad;
    Distributed::Unasked unasked(distributed_);
    for (const nb::object& parameter : idle_) {
        if (!grad.of(parameter).is_none()) {
            return false;
        }
    }
    for (std::size_t i = 0; i < members_.size(); ++i) {
        const Member& member = members_[i];
        Gradient& gradient = gradients_[i];
        gradient.tensor = grad.of(member.parameter);
        bool is_absent = gradient.tensor.is_none();
        if (is_absent) {
            gradient.tensor.reset();
        }
        if ((!is_absent || member.is_always_read) && !same_member(member)) {
            return false;
        }
        if (is_absent) {
            continue;
        }
        bool is_part =
            is_plain(gradient.tensor.ptr()) ? !member.spec.is_valid() : take_part(member, gradient);
        View view;
        if (!is_part || !reader_.look(gradient.tensor.ptr(), view) || !view.is_like(member.view) ||
            !written_.is_apart(view.span(), gradient.free) || !has_values(gradient.tensor, view)) {
            return false;
        }
        gradient.data = view.data;
    }
    return true;
}

// Whether the memory of a gradient is there, and has its values. A negated view (`z.conj().imag`)
// does not: it steps over real parts, so only one of one element has strides as a parameter has.
// torch's private `_neg_view` makes others. They are not asked for: neither DLPack nor the stable
// ABI tells of the sign, and asking in Python takes a tenth of a small step for each tensor.
inline bool TensorWatch::has_values(nb::handle gradient, const View& view) const {
    if (view.data == nullptr) [[unlikely]] {
        return view.count == 0;
    }
    return view.count != 1 || !nb::cast<bool>(names().is_neg.of(gradient)());
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
        if (!gradient.tensor.is_valid()) {
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
