// Plans over the parameters of a torch.optim.Optimizer.
//
// PyTorch lets anybody change anything between two steps: the data of a parameter, an entry of the
// state, an option of a group. So nothing is trusted: each step compares what it finds, object by
// object and pointer by pointer, with what the plan was made for, and answers NotImplemented where
// something else stands there. The front-end then looks closely and makes another plan.
//
// No link against libtorch: addresses come through the DLPack exchange API of the tensor type, or
// from data_ptr() where an older PyTorch has none.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "bindings.h"
#include "convert.h"
#include "dlpack.h"
#include "float_mode.h"

namespace nb = nanobind;

namespace adamas {
namespace {

// What a plan needs to know of a tensor.
struct View {
    void* data = nullptr;
    std::int64_t count = 0;
    bool on_cpu = false;
    bool contiguous = false;
    std::uint8_t code = 0, bits = 0;  // of the dtype, as DLPack has them

    bool is(std::uint8_t wanted_code, std::uint8_t wanted_bits) const {
        return on_cpu && contiguous && code == wanted_code && bits == wanted_bits;
    }
};

std::optional<DType> dtype_of(const View& view) {
    if (view.is(dlpack::float_code, 32)) {
        return DType::float32;
    }
    if (view.is(dlpack::float_code, 64)) {
        return DType::float64;
    }
    if (view.is(dlpack::bfloat_code, 16)) {
        return DType::bfloat16;
    }
    return view.is(dlpack::float_code, 16) ? std::optional(DType::float16) : std::nullopt;
}

struct Release {
    void operator()(dlpack::ManagedTensor* managed) const {
        if (managed->deleter != nullptr) {
            managed->deleter(managed);
        }
    }
};
using Reference = std::unique_ptr<dlpack::ManagedTensor, Release>;

// Reads tensors of one framework.
class Reader {
public:
    explicit Reader(nb::handle tensor_type) : tensor_type_(nb::borrow<nb::object>(tensor_type)) {
        nb::object capsule = nb::getattr(tensor_type, "__dlpack_c_exchange_api__", nb::none());
        if (PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) {
            api_ = static_cast<const dlpack::ExchangeApi*>(
                PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
            while (api_ != nullptr && api_->version.major != dlpack::major_version) {
                api_ = api_->older;
            }
        }
    }

    bool is_fast() const { return api_ != nullptr; }

    // Returns a second reference to a tensor, or null. While a tensor has but one, PyTorch hands
    // its Python object back and forth at every reading, which takes as long as the reading.
    Reference refer(PyObject* tensor) const {
        dlpack::ManagedTensor* managed = nullptr;
        if (api_ != nullptr && api_->managed_tensor_from_py_object_no_sync(tensor, &managed) != 0) {
            PyErr_Clear();
            managed = nullptr;
        }
        return Reference(managed);
    }

    // Returns nothing, with no Python error set, where the object is no plain tensor.
    std::optional<View> read(PyObject* tensor) const {
        if (api_ != nullptr) {
            return read_description(tensor);
        }
        return read_attributes(tensor);
    }

private:
    std::optional<View> read_description(PyObject* tensor) const {
        dlpack::Tensor found{};
        if (api_->tensor_from_py_object_no_sync(tensor, &found) != 0) {
            PyErr_Clear();
            return std::nullopt;
        }
        View view;
        view.data = static_cast<char*>(found.data) + found.byte_offset;
        view.on_cpu = found.device.device_type == dlpack::cpu;
        view.code = found.dtype.code;
        view.bits = found.dtype.bits;
        view.count = 1;
        view.contiguous = found.dtype.lanes == 1;
        for (std::int32_t i = found.ndim - 1; i >= 0; --i) {
            bool in_place = found.strides == nullptr || found.strides[i] == view.count;
            view.contiguous = view.contiguous && (found.shape[i] == 1 || in_place);
            view.count *= found.shape[i];
        }
        view.contiguous = view.contiguous || view.count == 0;
        return view;
    }

    std::optional<View> read_attributes(PyObject* object) const {
        try {
            nb::handle tensor(object);
            View view;
            nb::object dtype = tensor.attr("dtype");
            view.code = dlpack::float_code;
            view.bits = static_cast<std::uint8_t>(8 * nb::cast<int>(dtype.attr("itemsize")));
            if (!nb::cast<bool>(dtype.attr("is_floating_point"))) {
                view.code =
                    nb::cast<bool>(dtype.attr("is_signed")) ? dlpack::int_code : dlpack::uint_code;
            } else if (view.bits == 16 &&
                       nb::cast<bool>(nb::str(dtype).equal(nb::str("torch.bfloat16")))) {
                view.code = dlpack::bfloat_code;
            }
            view.on_cpu = nb::cast<bool>(tensor.attr("is_cpu"));
            view.contiguous = nb::cast<bool>(tensor.attr("is_contiguous")());
            view.count = nb::cast<std::int64_t>(tensor.attr("numel")());
            view.data =
                reinterpret_cast<void*>(nb::cast<std::uintptr_t>(tensor.attr("data_ptr")()));
            return view;
        } catch (nb::python_error&) {
            return std::nullopt;
        } catch (nb::cast_error&) {
            return std::nullopt;
        }
    }

    nb::object tensor_type_;
    const dlpack::ExchangeApi* api_ = nullptr;
};

// One entry of a state, and where it was.
struct Entry {
    nb::object tensor;
    void* data;
};

// A parameter that is stepped, with its state.
struct Member {
    nb::object parameter;
    View view;  // of the parameter
    nb::dict state;
    std::vector<std::pair<nb::object, nb::object>> items;  // of `state`, in order
    std::vector<Entry> entries;                            // the tensors among them, and the copy
    void* step;                                            // null where none is kept
    bool step_is_double;
    std::size_t cohort;

    // Whether another tensor has the dtype and the number of elements of the parameter.
    bool is_like(const View& other) const {
        return other.is(view.code, view.bits) && other.count == view.count;
    }
};

// Parameters of one group that are at the same step.
struct Cohort {
    std::size_t group;
    std::optional<Options> options;  // where the numbers come from options
    void* step = nullptr;            // of its first member
    bool step_is_double = false;
};

// A dict of options, and what was in it.
struct WatchedGroup {
    nb::dict options;
    nb::list parameters;
    std::vector<std::pair<nb::object, nb::object>> items;
    double lr = 0;
};

double number_at(const void* step, bool is_double) {
    return is_double ? *static_cast<const double*>(step) : *static_cast<const float*>(step);
}

class TensorPlan {
public:
    // `groups` are the optimizer's own dicts. `members` are tuples (parameter, its state dict,
    // names of the entries for step, m, v, w, average, header and remainder or None, copy or None,
    // index of the cohort, and how it is stored: forms of m and of v, rounding, top, number of the
    // tensor). `cohorts` are tuples (index of the group, Options or None). `idle` are
    // parameters that have no gradient. `watched` is False for groups whose options may change
    // unseen.
    TensorPlan(nb::type_object tensor_type, nb::type_object parameter_type, nb::list groups,
               nb::sequence members, nb::sequence cohorts, nb::sequence idle, nb::object phase,
               nb::object increment_version)
        : reader_(tensor_type),
          tensor_type_(tensor_type),
          parameter_type_(parameter_type),
          increment_version_(std::move(increment_version)),
          grad_(nb::steal<nb::str>(PyUnicode_InternFromString("grad"))),
          lr_(nb::steal<nb::str>(PyUnicode_InternFromString("lr"))) {
        for (nb::handle group : groups) {
            groups_.push_back(watched(nb::cast<nb::dict>(group)));
        }
        for (nb::handle cohort : cohorts) {
            nb::object options = cohort[1];
            cohorts_.push_back(
                {nb::cast<std::size_t>(cohort[0]),
                 options.is_none() ? std::nullopt : std::optional(options_of(options))});
        }
        std::vector<Tensor> tensors;
        for (nb::handle member : members) {
            tensors.push_back(joined(member));
        }
        for (std::size_t i = 0; i < members_.size(); ++i) {
            changed_.append(members_[i].parameter);
            if (!members_[i].items.empty()) {
                stateful_.push_back(i);
            }
        }
        for (nb::handle parameter : idle) {
            idle_.push_back(nb::borrow<nb::object>(parameter));
        }
        gradients_.resize(members_.size());
        plan_.emplace(std::move(tensors), phase_of(phase));
    }

    ~TensorPlan() { drop_gradients(); }
    TensorPlan(const TensorPlan&) = delete;
    TensorPlan& operator=(const TensorPlan&) = delete;

    // Makes a step; returns None or the parts of an Outcome, or NotImplemented, having changed
    // nothing, where the plan does not fit what is there. `numbers` are those of the cohorts
    // without options, in order.
    nb::object step(nb::handle groups, nb::handle state, double loss_scale, double factor,
                    nb::object numbers) {
        if (busy_.exchange(true)) {
            throw std::runtime_error("This optimizer is making a step in another thread.");
        }
        Turn turn{*this};
        FloatMode mode;  // for the numbers of the step too, not for the sweep alone
        if (!same_groups(groups) || !same_state(state) || !same_members() || !number(numbers) ||
            !borrow_gradients()) {
            return nb::borrow(Py_NotImplemented);
        }
        Outcome outcome = step_released(*plan_, numbers_, loss_scale, factor);
        if (outcome.applied) {
            count_step();
        }
        return parts_of(outcome, plan_->phase());
    }

    bool is_fast() const { return reader_.is_fast(); }

private:
    struct Turn {
        TensorPlan& plan;
        ~Turn() {
            plan.drop_gradients();
            plan.busy_.store(false);
        }
    };

    // -- making the plan ---------------------------------------------------------------------

    static std::vector<std::pair<nb::object, nb::object>> items_of(nb::dict dict) {
        std::vector<std::pair<nb::object, nb::object>> items;
        for (auto [key, value] : dict) {
            items.emplace_back(nb::borrow<nb::object>(key), nb::borrow<nb::object>(value));
        }
        return items;
    }

    WatchedGroup watched(nb::dict options) {
        WatchedGroup group{options, nb::cast<nb::list>(options["params"]), items_of(options)};
        for (nb::handle parameter : group.parameters) {
            parameters_.push_back(parameter.ptr());  // kept alive by the list of group.items
            kept_.push_back(nb::borrow<nb::object>(parameter));
        }
        return group;
    }

    Tensor joined(nb::handle given) {
        Member member;
        member.parameter = given[0];
        member.state = nb::cast<nb::dict>(given[1]);
        member.items = items_of(member.state);
        member.cohort = nb::cast<std::size_t>(given[4]);
        Cohort& cohort = cohorts_.at(member.cohort);
        View parameter = read(member.parameter);
        std::optional<DType> dtype = dtype_of(parameter);
        if (!dtype) {
            throw std::invalid_argument("A plan needs contiguous floating CPU tensors.");
        }
        member.view = parameter;
        references_.push_back(reader_.refer(member.parameter.ptr()));
        nb::object names = given[2];
        Tensor tensor{};
        std::uint8_t bits = *dtype == DType::float64 ? 64 : 32;  // of its arithmetic
        auto entry = [&](int i) -> void* {
            nb::object name = names[i];
            return name.is_none() ? nullptr
                                  : kept(member, member.state[name], dlpack::float_code, bits,
                                         parameter.count);
        };
        nb::object stored = given[5];
        Layout layout{*dtype, !names[1].is_none(), !names[2].is_none(), !names[3].is_none()};
        put_storage(layout, stored[0], stored[1], stored[2], nb::cast<int>(stored[3]));
        tensor.number = nb::cast<std::uint64_t>(stored[4]);
        void* m = layout.mean_form == Form::plain
                      ? entry(1)
                      : mean_of(member, names[1], layout.mean_form, parameter);
        void* v = layout.square_form == Form::plain
                      ? entry(2)
                      : square_of(member, names[2], layout.square_form, parameter);
        void* w = entry(3);
        void* ema = entry(4);
        tensor.layout = layout;
        tensor.arrays = {parameter.data, nullptr, m, v, w, ema, nullptr, CopyType::bfloat16};
        if (nb::object name = names[5]; !name.is_none()) {
            std::int64_t blocks = (parameter.count + block_size - 1) / block_size;
            tensor.arrays.header = static_cast<std::uint16_t*>(
                kept(member, member.state[name], dlpack::int_code, 16, blocks));
        }
        if (nb::object name = names[6]; !name.is_none()) {
            std::uint8_t width = layout.rounding == Rounding::remainder ? 16 : 8;
            tensor.arrays.remainder =
                kept(member, member.state[name], dlpack::int_code, width, parameter.count);
        }
        add_copy(member, tensor, given[3], parameter.count);
        add_step(member, names[0], cohort);
        tensor.count = parameter.count;
        tensor.numbers = member.cohort;
        members_.push_back(std::move(member));
        return tensor;
    }

    void* mean_of(Member& member, nb::object name, Form form, const View& parameter) {
        if (name.is_none()) {
            return nullptr;
        }
        nb::object tensor = member.state[name];
        switch (form) {
            case Form::bfloat16:
                return kept(member, tensor, dlpack::bfloat_code, 16, parameter.count);
            case Form::compact:
                return kept(member, tensor, dlpack::uint_code, 8, parameter.count);
            default:
                return kept(member, tensor, dlpack::int_code, 8, parameter.count);
        }
    }

    void* square_of(Member& member, nb::object name, Form form, const View& parameter) {
        if (name.is_none()) {
            return nullptr;
        }
        nb::object tensor = member.state[name];
        switch (form) {
            case Form::bfloat16:
            case Form::compact:
                return kept(member, tensor, dlpack::bfloat_code, 16, parameter.count);
            default:
                return kept(member, tensor, dlpack::uint_code, 8, parameter.count);
        }
    }

    void add_copy(Member& member, Tensor& tensor, nb::object copy, std::int64_t count) {
        if (copy.is_none()) {
            return;
        }
        View view = read(copy);
        bool is_bfloat16 = view.code == dlpack::bfloat_code;
        tensor.arrays.copy = static_cast<std::uint16_t*>(
            kept(member, copy, is_bfloat16 ? dlpack::bfloat_code : dlpack::float_code, 16, count));
        tensor.arrays.copy_type = is_bfloat16 ? CopyType::bfloat16 : CopyType::float16;
    }

    void add_step(Member& member, nb::object name, Cohort& cohort) {
        member.step = nullptr;
        member.step_is_double = false;
        if (name.is_none()) {
            return;
        }
        nb::object tensor = member.state[name];
        View view = read(tensor);
        member.step_is_double = view.bits == 64;
        member.step = kept(member, tensor, dlpack::float_code, view.bits == 64 ? 64 : 32, 1);
        if (cohort.step == nullptr) {
            cohort.step = member.step;
            cohort.step_is_double = member.step_is_double;
        }
    }

    View read(nb::handle tensor) const {
        std::optional<View> view = reader_.read(tensor.ptr());
        if (!view) {
            throw std::invalid_argument("A plan needs plain tensors.");
        }
        return *view;
    }

    void* kept(Member& member, nb::object tensor, std::uint8_t code, std::uint8_t bits,
               std::int64_t count) {
        View view = read(tensor);
        if (!view.is(code, bits) || view.count != count) {
            throw std::invalid_argument("A plan needs state that fits its parameter.");
        }
        member.entries.push_back({tensor, view.data});
        references_.push_back(reader_.refer(tensor.ptr()));
        return view.data;
    }

    // -- whether it still fits ---------------------------------------------------------------

    static bool same_items(const std::vector<std::pair<nb::object, nb::object>>& items,
                           PyObject* dict, PyObject* free_key = nullptr) {
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

    bool same_groups(nb::handle groups) {
        if (!PyList_Check(groups.ptr()) ||
            static_cast<std::size_t>(PyList_GET_SIZE(groups.ptr())) != groups_.size()) {
            return false;
        }
        std::size_t at = 0;
        for (std::size_t i = 0; i < groups_.size(); ++i) {
            WatchedGroup& group = groups_[i];
            PyObject* parameters = group.parameters.ptr();
            Py_ssize_t count = PyList_GET_SIZE(parameters);
            if (PyList_GET_ITEM(groups.ptr(), i) != group.options.ptr() ||
                !same_items(group.items, group.options.ptr(), lr_.ptr()) ||
                at + count > parameters_.size()) {
                return false;
            }
            for (Py_ssize_t j = 0; j < count; ++j) {
                if (PyList_GET_ITEM(parameters, j) != parameters_[at++]) {
                    return false;
                }
            }
            PyObject* lr = PyDict_GetItemWithError(group.options.ptr(), lr_.ptr());
            if (lr == nullptr) {
                return false;
            }
            group.lr = PyFloat_AsDouble(lr);  // takes a tensor of one element, too
            if (group.lr == -1.0 && PyErr_Occurred()) {
                throw nb::python_error();
            }
        }
        return at == parameters_.size();
    }

    bool same_state(nb::handle state) const {
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

    bool same_members() const {
        for (const Member& member : members_) {
            std::optional<View> parameter = reader_.read(member.parameter.ptr());
            if (!parameter || !member.is_like(*parameter) || parameter->data != member.view.data ||
                !same_items(member.items, member.state.ptr())) {
                return false;
            }
            for (const Entry& entry : member.entries) {
                std::optional<View> view = reader_.read(entry.tensor.ptr());
                if (!view || view->data != entry.data) {
                    return false;
                }
            }
        }
        return true;
    }

    // Computes the numbers of each cohort; false where its members are no longer in step.
    bool number(nb::handle given) {
        numbers_.clear();
        std::size_t next = 0;
        for (const Cohort& cohort : cohorts_) {
            double done =
                cohort.step == nullptr ? 0 : number_at(cohort.step, cohort.step_is_double);
            auto step = static_cast<std::int64_t>(done) + 1;
            const Phase& phase = plan_->phase();
            if (cohort.options) {
                numbers_.push_back(
                    numbers_at(*cohort.options, phase, step, groups_[cohort.group].lr));
                continue;
            }
            nb::object values = given[next++];
            numbers_.push_back(given_numbers(values, static_cast<std::uint64_t>(step)));
        }
        for (const Member& member : members_) {
            const Cohort& cohort = cohorts_[member.cohort];
            if (member.step != nullptr && number_at(member.step, member.step_is_double) !=
                                              number_at(cohort.step, cohort.step_is_double)) {
                return false;
            }
        }
        return true;
    }

    bool borrow_gradients() {
        for (const nb::object& parameter : idle_) {
            nb::object gradient = nb::steal(PyObject_GetAttr(parameter.ptr(), grad_.ptr()));
            if (!gradient.is_none()) {
                return false;
            }
        }
        for (std::size_t i = 0; i < members_.size(); ++i) {
            PyObject* gradient = PyObject_GetAttr(members_[i].parameter.ptr(), grad_.ptr());
            gradients_[i] = gradient;
            if (gradient == nullptr) {
                throw nb::python_error();
            }
            PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(gradient));
            if (type != tensor_type_.ptr() && type != parameter_type_.ptr()) {
                return false;
            }
            std::optional<View> view = reader_.read(gradient);
            const Member& member = members_[i];
            bool is_itself = view && view->data == member.view.data && view->count > 0;
            if (!view || !member.is_like(*view) || is_itself) {
                return false;
            }
            plan_->tensors()[i].arrays.g = view->data;
        }
        return true;
    }

    void drop_gradients() {
        for (PyObject*& gradient : gradients_) {
            Py_CLEAR(gradient);
        }
    }

    // -- after the sweep ---------------------------------------------------------------------

    void count_step() {
        for (const Member& member : members_) {
            if (member.step != nullptr && member.step_is_double) {
                *static_cast<double*>(member.step) += 1;
            } else if (member.step != nullptr) {
                *static_cast<float*>(member.step) += 1;
            }
        }
        increment_version_(changed_);
    }

    Reader reader_;
    nb::object tensor_type_, parameter_type_;
    nb::object increment_version_;  // tells autograd that the members changed
    nb::str grad_, lr_;
    std::vector<WatchedGroup> groups_;
    std::vector<PyObject*> parameters_;  // of all groups, in order
    std::vector<nb::object> kept_;       // the same, to keep them alive
    std::vector<Cohort> cohorts_;
    std::vector<Member> members_;
    std::vector<Reference> references_;  // to all tensors of the members
    nb::list changed_;                   // the parameters of the members
    std::vector<std::size_t> stateful_;  // members that keep a state
    std::vector<nb::object> idle_;
    std::vector<PyObject*> gradients_;  // held during a step
    std::vector<StepNumbers> numbers_;  // of the step under way, for each cohort
    std::optional<Plan> plan_;
    std::atomic<bool> busy_{false};
};

}  // namespace

void bind_tensor_plan(nb::module_& module) {
    nb::class_<TensorPlan>(module, "TensorPlan",
                           "A step over the parameters of a torch.optim.Optimizer.")
        .def(nb::init<nb::type_object, nb::type_object, nb::list, nb::sequence, nb::sequence,
                      nb::sequence, nb::object, nb::object>(),
             nb::arg("tensor_type"), nb::arg("parameter_type"), nb::arg("groups"),
             nb::arg("members"), nb::arg("cohorts"), nb::arg("idle"), nb::arg("phase"),
             nb::arg("increment_version"))
        .def("step", &TensorPlan::step, nb::arg("groups"), nb::arg("state"),
             nb::arg("loss_scale") = 1.0, nb::arg("factor") = 1.0, nb::arg("numbers") = nb::none(),
             "Make one step; None, the parts of an Outcome, or NotImplemented.")
        .def_prop_ro("is_fast", &TensorPlan::is_fast,
                     "Whether addresses come through the DLPack exchange API.");
}

}  // namespace adamas
