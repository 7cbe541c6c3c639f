#include "tensor_watch.h"

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

#include <algorithm>
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

// Sets counts, shape and layout. Without strides a tensor is contiguous.
inline void lay_out(View& view, std::int32_t rank, const std::int64_t* sizes,
                    const std::int64_t* strides) {
    bool contiguous = true;
    std::int64_t count = 1;
    std::uint64_t shape = static_cast<std::uint64_t>(rank);
    for (std::int32_t i = rank - 1; i >= 0; --i) {
        bool in_place = strides == nullptr || strides[i] == count;
        contiguous = contiguous && (sizes[i] == 1 || in_place);
        count *= sizes[i];
        shape = shape * 0x9e3779b97f4a7c15u + static_cast<std::uint64_t>(sizes[i]);
    }
    view.count = view.reach = count;
    view.shape = shape;
    view.layout = 0;
    if (!contiguous && count != 0) [[unlikely]] {
        view.layout = hash_of(rank, sizes, strides);
        view.reach = 1;
        for (std::int32_t i = 0; i < rank; ++i) {
            view.reach += (sizes[i] - 1) * strides[i];
        }
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

inline bool Reader::look(PyObject* tensor, View& view) {
    if (handle_ == 0) [[unlikely]] {
        find_handles(tensor);
        if (handle_ == 0) {
            return read(tensor, view);
        }
    }
    void* handle = reinterpret_cast<char*>(tensor) + handle_;
    Kind found{};
    if ((shim_->dtype(handle, &found.dtype) | shim_->layout(handle, &found.layout) |
         shim_->device_type(handle, &found.device_type) |
         shim_->device_index(handle, &found.device_index)) != 0) {
        return false;
    }
    const Kind* kind = kind_of(tensor, found);
    if (kind == nullptr) {
        return false;
    }
    std::int64_t rank;
    std::int64_t *sizes, *strides;
    if ((shim_->data(handle, &view.data) | shim_->rank(handle, &rank) |
         shim_->sizes(handle, &sizes) | shim_->strides(handle, &strides)) != 0) {
        return false;
    }
    view.device = kind->device;
    view.code = kind->code;
    view.bits = kind->bits;
    lay_out(view, static_cast<std::int32_t>(rank), sizes, strides);
    return true;
}

inline bool Reader::is_at(PyObject* tensor, const void* data) {
    if (handle_ != 0) [[likely]] {
        void* found = nullptr;
        return shim_->data(reinterpret_cast<char*>(tensor) + handle_, &found) == 0 && found == data;
    }
    View view;
    return read(tensor, view) && view.data == data;
}

// Finds the at::Tensor in a Python object: right behind its head, with a flag before it in older
// versions. What stands there is the address that the object gives for its tensor.
void Reader::find_handles(PyObject* tensor) {
    if (has_looked_for_handles_) {
        return;
    }
    has_looked_for_handles_ = true;
    const Shim* shim = api_ == nullptr ? nullptr : Shim::find();
    nb::object address = nb::getattr(nb::handle(tensor), "_cdata", nb::none());
    std::uintptr_t wanted = 0;
    if (shim == nullptr || !nb::try_cast(address, wanted) || wanted == 0) {
        return;
    }
    for (std::size_t place : {sizeof(PyObject), sizeof(PyObject) + sizeof(void*)}) {
        const char* stands = reinterpret_cast<const char*>(tensor) + place;
        if (place + sizeof(void*) <= static_cast<std::size_t>(Py_TYPE(tensor)->tp_basicsize) &&
            *reinterpret_cast<const std::uintptr_t*>(stands) == wanted) {
            shim_ = shim;
            handle_ = place;
            return;
        }
    }
}

// Returns what is known of a kind of tensors, of which `tensor` is one; null where it is no plain
// one.
inline const Reader::Kind* Reader::kind_of(PyObject* tensor, const Kind& wanted) {
    for (const Kind& known : kinds_) {
        if (known.dtype == wanted.dtype && known.layout == wanted.layout &&
            known.device_type == wanted.device_type && known.device_index == wanted.device_index) {
            return &known;
        }
    }
    View view;
    if (!read(tensor, view)) {
        return nullptr;
    }
    Kind kind = wanted;
    kind.device = view.device;
    kind.code = view.code;
    kind.bits = view.bits;
    kinds_.push_back(kind);
    return &kinds_.back();
}

const Shim* Shim::find() {
#if defined(_WIN32)
    return nullptr;
#else
    static const Shim found = [] {
        Shim shim;
#if defined(__APPLE__)
        void* library = dlopen("@rpath/libtorch_cpu.dylib", RTLD_LAZY | RTLD_NOLOAD);
#else
        void* library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
#endif
        if (library == nullptr) {
            return shim;
        }
        bool all = true;
        auto take = [&](auto& function, const char* name) {
            function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
            all = all && function != nullptr;
        };
        take(shim.rank, "aoti_torch_get_dim");
        take(shim.sizes, "aoti_torch_get_sizes");
        take(shim.strides, "aoti_torch_get_strides");
        take(shim.dtype, "aoti_torch_get_dtype");
        take(shim.layout, "aoti_torch_get_layout");
        take(shim.device_type, "aoti_torch_get_device_type");
        take(shim.device_index, "aoti_torch_get_device_index");
        take(shim.data, "aoti_torch_get_data_ptr");
        shim.data = all ? shim.data : nullptr;
        return shim;
    }();
    return found.data == nullptr ? nullptr : &found;
#endif
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
      lr_(interned("lr")),
      is_neg_(interned("is_neg")) {
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
    written_.push_back({view.start(), view.end()});
    Items items = items_of(state);
    if (!items.empty()) {
        stateful_.push_back(members_.size());
    }
    members_.push_back(
        {std::move(parameter), view, std::move(state), std::move(items), {}, is_always_read});
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
    written_.push_back({view.start(), view.end()});
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
    stateful_.clear();
}

// -- whether it is as it was ---------------------------------------------------------------------

TensorWatch::Turn::Turn(TensorWatch& watch) : watch_(watch), is_taken_(watch.take()) {
    if (!is_taken_) {
        throw std::runtime_error("This optimizer is making a step in another thread.");
    }
}

// Who closes it marks it first and looks for calls then; a call does it the other way round. So
// one of them sees the other.
TensorWatch::Turn::Turn(TensorWatch& watch, std::nothrow_t)
    : watch_(watch), is_taken_(watch.take()) {
    if (is_taken_ && watch_.is_closed_.load()) {
        is_taken_ = false;
        watch_.caller_.store(0);
    }
}

TensorWatch::Turn::~Turn() {
    if (!is_taken_) {
        return;
    }
    for (Gradient& gradient : watch_.gradients_) {
        gradient.tensor.reset();
    }
    watch_.caller_.store(0);
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

inline bool TensorWatch::same_member(const Member& member) {
    View view;
    if (!is_plain(member.parameter.ptr()) || !reader_.look(member.parameter.ptr(), view) ||
        view.data != member.view.data || !view.is_like(member.view) ||
        !same_items(member.items, member.state.ptr())) {
        return false;
    }
    for (const Entry& entry : member.entries) {
        if (!is_plain(entry.tensor.ptr()) || !reader_.is_at(entry.tensor.ptr(), entry.data)) {
            return false;
        }
    }
    return true;
}

bool TensorWatch::same_tensors() {
    for (const nb::object& parameter : idle_) {
        if (!attribute(parameter, grad_).is_none()) {
            return false;
        }
    }
    for (std::size_t i = 0; i < members_.size(); ++i) {
        const Member& member = members_[i];
        Gradient& gradient = gradients_[i];
        gradient.tensor = attribute(member.parameter, grad_);
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
        View view;
        if (!is_plain(gradient.tensor.ptr()) || !reader_.look(gradient.tensor.ptr(), view) ||
            !view.is_like(member.view) || !is_apart(gradient, view) ||
            !has_values(gradient.tensor, view)) {
            return false;
        }
        gradient.data = view.data;
    }
    return true;
}

// Whether the memory of a gradient is there, and has its values. A negated view (`z.conj().imag`)
// does not: it steps over real parts, so only one of one element has strides as a parameter has.
inline bool TensorWatch::has_values(nb::handle gradient, const View& view) const {
    if (view.data == nullptr) [[unlikely]] {
        return view.count == 0;
    }
    return view.count != 1 || !nb::cast<bool>(attribute(gradient, is_neg_)());
}

// Whether a gradient shares nothing with what a step writes. Most stay where they were, or near.
inline bool TensorWatch::is_apart(Gradient& gradient, const View& view) {
    std::uintptr_t start = view.start(), end = view.end();
    if ((gradient.free_from <= start && end <= gradient.free_to) || view.count == 0) [[likely]] {
        return true;
    }
    sort_written();
    auto after = std::partition_point(written_.begin(), written_.end(),
                                      [&](const Span& span) { return span.end <= start; });
    if (after != written_.end() && after->start < end) {
        return false;
    }
    gradient.free_from = after == written_.begin() ? 0 : std::prev(after)->end;
    gradient.free_to = after == written_.end() ? UINTPTR_MAX : after->start;
    return true;
}

// Puts what is written in order, and what meets together.
void TensorWatch::sort_written() {
    if (is_sorted_) {
        return;
    }
    std::sort(written_.begin(), written_.end(),
              [](const Span& a, const Span& b) { return a.start < b.start; });
    std::vector<Span> apart;
    for (const Span& span : written_) {
        if (span.start == span.end) {
            continue;
        }
        if (!apart.empty() && span.start <= apart.back().end) {
            apart.back().end = std::max(apart.back().end, span.end);
        } else {
            apart.push_back(span);
        }
    }
    written_ = std::move(apart);
    is_sorted_ = true;
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
