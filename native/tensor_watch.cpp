#include "tensor_watch.h"

#include <stdexcept>
#include <string>

#include "bindings.h"
#include "buffer.h"

namespace nb = nanobind;

namespace adamas {
namespace {

std::uint64_t mixed(std::uint64_t x) {  // the finalizer of SplitMix64: Steele et al. 2014
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// Tells sizes and strides apart but for one chance in 2⁶³; never 0.
std::uint64_t hash_of(std::int32_t rank, const std::int64_t* sizes, const std::int64_t* strides) {
    std::uint64_t hash = 0;
    for (std::int32_t i = 0; i < rank; ++i) {
        if (sizes[i] != 1) {
            hash = mixed(hash + static_cast<std::uint64_t>(sizes[i]) + 0x9e3779b97f4a7c15u);
            hash = mixed(hash + static_cast<std::uint64_t>(strides[i]) + 0x9e3779b97f4a7c15u);
        }
    }
    return hash | 1;
}

// Sets the count and the layout. Without strides a tensor is contiguous.
inline void lay_out(View& view, std::int32_t rank, const std::int64_t* sizes,
                    const std::int64_t* strides) {
    bool contiguous = true;
    std::int64_t count = 1;
    for (std::int32_t i = rank - 1; i >= 0; --i) {
        bool in_place = strides == nullptr || strides[i] == count;
        contiguous = contiguous && (sizes[i] == 1 || in_place);
        count *= sizes[i];
    }
    view.count = count;
    view.layout = 0;
    if (!contiguous && count != 0) [[unlikely]] {
        view.layout = hash_of(rank, sizes, strides);
    }
}

// The two numbers of a device in one. They are read one by one, as they were written: reading both
// at once right after that takes longer than all the rest that is done with them.
std::int64_t number_of(dlpack::Device device) {
    return (static_cast<std::int64_t>(device.device_type) << 32) |
           static_cast<std::uint32_t>(device.device_id);
}

void* start(const dlpack::Tensor& tensor) {
    return static_cast<char*>(tensor.data) + tensor.byte_offset;
}

std::vector<std::int64_t> integers_of(nb::handle sequence) {
    std::vector<std::int64_t> integers;
    for (nb::handle each : sequence) {
        integers.push_back(nb::cast<std::int64_t>(each));
    }
    return integers;
}

bool equal(nb::handle a, const char* b) { return a.equal(nb::str(b)); }

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

nb::str interned(const char* text) { return nb::steal<nb::str>(PyUnicode_InternFromString(text)); }

nb::object attribute(nb::handle object, nb::handle name) {
    nb::object value = nb::steal(PyObject_GetAttr(object.ptr(), name.ptr()));
    if (!value.is_valid()) {
        throw nb::python_error();
    }
    return value;
}

bool is_int64(const Py_buffer& view) {
    constexpr char long_format = sizeof(long) == 8 ? 'l' : 'q';
    return view.format != nullptr && (view.format[0] == 'q' || view.format[0] == long_format) &&
           view.format[1] == '\0';
}

}  // namespace

// -- reading tensors -----------------------------------------------------------------------------

Reader::Reader(nb::handle tensor_type) : tensor_type_(nb::borrow<nb::object>(tensor_type)) {
    nb::object capsule = nb::getattr(tensor_type, "__dlpack_c_exchange_api__", nb::none());
    if (PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) {
        api_ = static_cast<const dlpack::ExchangeApi*>(
            PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
        while (api_ != nullptr && api_->version.major != dlpack::major_version) {
            api_ = api_->older;
        }
    }
}

Reference Reader::refer(PyObject* tensor) const {
    dlpack::ManagedTensor* managed = nullptr;
    if (api_ != nullptr && api_->managed_tensor_from_py_object_no_sync(tensor, &managed) != 0) {
        PyErr_Clear();
        managed = nullptr;
    }
    return Reference(managed);
}

inline bool Reader::describe(PyObject* tensor, dlpack::Tensor& found) const {
    if (api_->tensor_from_py_object_no_sync(tensor, &found) != 0) {
        PyErr_Clear();
        return false;
    }
    return true;
}

inline bool Reader::read(PyObject* tensor, View& view) {
    if (api_ == nullptr) [[unlikely]] {
        View found;  // so that `view` need not be in memory
        bool is_plain = read_attributes(tensor, found);
        view = found;
        return is_plain;
    }
    dlpack::Tensor found;
    if (!describe(tensor, found) || found.dtype.lanes != 1) {
        return false;
    }
    view.data = start(found);
    view.device = number_of(found.device);
    view.code = found.dtype.code;
    view.bits = found.dtype.bits;
    lay_out(view, found.ndim, found.shape, found.strides);
    return true;
}

inline bool Reader::is_at(PyObject* tensor, const void* data) {
    if (api_ == nullptr) {
        View view;
        return read_attributes(tensor, view) && view.data == data;
    }
    dlpack::Tensor found;
    return describe(tensor, found) && start(found) == data;
}

bool Reader::read_attributes(PyObject* object, View& view) {
    try {
        nb::handle tensor(object);
        const Type& type = type_of(tensor.attr("dtype"));
        view.code = type.code;
        view.bits = type.bits;
        view.device = number_of(device_of(tensor.attr("device")));
        std::vector<std::int64_t> sizes = integers_of(tensor.attr("shape"));
        std::vector<std::int64_t> strides = integers_of(tensor.attr("stride")());
        if (strides.size() != sizes.size()) {
            return false;
        }
        lay_out(view, static_cast<std::int32_t>(sizes.size()), sizes.data(), strides.data());
        view.data = reinterpret_cast<void*>(nb::cast<std::uintptr_t>(tensor.attr("data_ptr")()));
        return true;
    } catch (nb::python_error&) {
        return false;
    } catch (nb::cast_error&) {
        return false;
    }
}

const Reader::Type& Reader::type_of(nb::object dtype) {
    for (const Type& known : types_) {
        if (known.dtype.is(dtype)) {
            return known;
        }
    }
    Type type{dtype, dlpack::float_code,
              static_cast<std::uint8_t>(8 * nb::cast<int>(dtype.attr("itemsize")))};
    nb::str name(dtype);
    bool is_float = nb::cast<bool>(dtype.attr("is_floating_point"));
    if (nb::cast<bool>(dtype.attr("is_complex")) || equal(name, "torch.bool") ||
        (is_float && type.bits < 16)) {
        // A code of its own: no plan computes with these, but they are told apart.
        type.code = static_cast<std::uint8_t>(128 + types_.size());
    } else if (!is_float) {
        type.code = nb::cast<bool>(dtype.attr("is_signed")) ? dlpack::int_code : dlpack::uint_code;
    } else if (equal(name, "torch.bfloat16")) {
        type.code = dlpack::bfloat_code;
    }
    types_.push_back(std::move(type));
    return types_.back();
}

dlpack::Device Reader::device_of(nb::object device) {
    if (equal(device.attr("type"), "cpu")) {
        return {dlpack::cpu, 0};
    }
    std::size_t i = 0;
    while (i < devices_.size() && !devices_[i].equal(device)) {
        ++i;
    }
    if (i == devices_.size()) {
        devices_.push_back(std::move(device));
    }
    return {-1, static_cast<std::int32_t>(i)};
}

// -- what is watched -----------------------------------------------------------------------------

TensorWatch::TensorWatch(nb::handle tensor_type, nb::handle parameter_type, nb::list groups,
                         nb::sequence idle)
    : reader_(tensor_type),
      tensor_type_(nb::borrow<nb::object>(tensor_type)),
      parameter_type_(nb::borrow<nb::object>(parameter_type)),
      grad_(interned("grad")),
      lr_(interned("lr")) {
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
                         nb::list groups, nb::sequence members, nb::sequence idle)
    : TensorWatch(nb::handle(tensor_type), nb::handle(parameter_type), std::move(groups),
                  std::move(idle)) {
    for (nb::handle member : members) {
        add(member[0], nb::cast<nb::dict>(member[1]));
        for (auto& [key, value] : members_.back().items) {
            View view;
            if (is_plain(value.ptr()) && reader_.read(value.ptr(), view)) {
                keep(value, view.data);
            }
        }
        for (nb::handle tensor : nb::object(member[2])) {
            keep(nb::borrow<nb::object>(tensor));
        }
    }
}

View TensorWatch::add(nb::object parameter, nb::dict state) {
    View view = read(parameter);
    references_.push_back(reader_.refer(parameter.ptr()));
    Items items = items_of(state);
    if (!items.empty()) {
        stateful_.push_back(members_.size());
    }
    members_.push_back({std::move(parameter), view, std::move(state), std::move(items), {}});
    gradients_.emplace_back();
    return view;
}

View TensorWatch::keep(nb::object tensor) {
    View view = read(tensor);
    keep(tensor, view.data);
    return view;
}

void TensorWatch::keep(nb::handle tensor, const void* data) {
    members_.back().entries.push_back({nb::borrow<nb::object>(tensor), data});
    references_.push_back(reader_.refer(tensor.ptr()));
}

View TensorWatch::read(nb::handle tensor) {
    View view;
    if (!reader_.read(tensor.ptr(), view)) {
        throw std::invalid_argument("A plan needs plain tensors.");
    }
    return view;
}

bool TensorWatch::is_plain(PyObject* object) const {
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    return type == tensor_type_.ptr() || type == parameter_type_.ptr();
}

namespace {

int visit_items(const Items& items, visitproc visit, void* arg) {
    for (auto& [key, value] : items) {
        Py_VISIT(key.ptr());
        Py_VISIT(value.ptr());
    }
    return 0;
}

}  // namespace

int TensorWatch::traverse(visitproc visit, void* arg) const {
    for (const Group& group : groups_) {
        Py_VISIT(group.options.ptr());
        Py_VISIT(group.parameters.ptr());
        if (int stop = visit_items(group.items, visit, arg)) {
            return stop;
        }
    }
    for (const Member& member : members_) {
        Py_VISIT(member.parameter.ptr());
        Py_VISIT(member.state.ptr());
        if (int stop = visit_items(member.items, visit, arg)) {
            return stop;
        }
        for (const Entry& entry : member.entries) {
            Py_VISIT(entry.tensor.ptr());
        }
    }
    for (const nb::object& parameter : parameters_) {
        Py_VISIT(parameter.ptr());
    }
    for (const nb::object& parameter : idle_) {
        Py_VISIT(parameter.ptr());
    }
    for (const Gradient& gradient : gradients_) {
        Py_VISIT(gradient.tensor.ptr());
    }
    return 0;
}

void TensorWatch::clear() {
    // Moved away first: what goes may look at this watch.
    auto groups = std::move(groups_);
    auto members = std::move(members_);
    auto parameters = std::move(parameters_);
    auto idle = std::move(idle_);
    auto gradients = std::move(gradients_);
    auto references = std::move(references_);
    stateful_.clear();
}

// -- whether it is as it was ---------------------------------------------------------------------

TensorWatch::Turn::Turn(TensorWatch& watch) : watch_(watch) {
    if (watch_.busy_.exchange(true)) {
        throw std::runtime_error("This optimizer is making a step in another thread.");
    }
}

TensorWatch::Turn::~Turn() {
    for (Gradient& gradient : watch_.gradients_) {
        gradient.tensor.reset();
    }
    watch_.busy_.store(false);
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
            !same_items(group.items, group.options.ptr(), lr_.ptr()) ||
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

bool TensorWatch::same_members() {
    for (const Member& member : members_) {
        View view;
        if (!reader_.read(member.parameter.ptr(), view) || view.data != member.view.data ||
            !view.is_like(member.view) || !same_items(member.items, member.state.ptr())) {
            return false;
        }
        for (const Entry& entry : member.entries) {
            if (!reader_.is_at(entry.tensor.ptr(), entry.data)) {
                return false;
            }
        }
    }
    return true;
}

bool TensorWatch::borrow_gradients() {
    for (const nb::object& parameter : idle_) {
        if (!attribute(parameter, grad_).is_none()) {
            return false;
        }
    }
    for (std::size_t i = 0; i < members_.size(); ++i) {
        const Member& member = members_[i];
        Gradient& gradient = gradients_[i];
        gradient.tensor = attribute(member.parameter, grad_);
        if (!is_plain(gradient.tensor.ptr())) {
            return false;
        }
        View view;
        if (!reader_.read(gradient.tensor.ptr(), view) || !view.is_like(member.view) ||
            (view.data == member.view.data && view.count > 0)) {
            return false;
        }
        gradient.data = view.data;
    }
    return true;
}

bool TensorWatch::gradients(nb::handle groups, nb::handle state, nb::handle addresses) {
    Turn turn(*this);
    Buffer memory;
    if (!memory.acquire(addresses.ptr(), PyBUF_WRITABLE | PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) ||
        !is_int64(memory.view()) ||
        static_cast<std::size_t>(memory.view().len) != members_.size() * sizeof(std::int64_t)) {
        throw std::invalid_argument("The addresses need a writable, C-contiguous int64 array of " +
                                    std::to_string(members_.size()) +
                                    " elements, one for each member.");
    }
    if (!same_groups(groups) || !same_state(state) || !same_members() || !borrow_gradients()) {
        return false;
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
        .def(nb::init<nb::type_object, nb::type_object, nb::list, nb::sequence, nb::sequence>(),
             nb::arg("tensor_type"), nb::arg("parameter_type"), nb::arg("groups"),
             nb::arg("members"), nb::arg("idle"))
        .def("gradients", &TensorWatch::gradients, nb::arg("groups"), nb::arg("state"),
             nb::arg("addresses"),
             "Whether all is as it was; writes the addresses of the gradients.")
        .def_prop_ro("is_fast", &TensorWatch::is_fast,
                     "Whether addresses come through the DLPack exchange API.");
}

}  // namespace adamas
