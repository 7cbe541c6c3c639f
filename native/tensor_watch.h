// Whether the tensors of a torch.optim.Optimizer are those that a plan was made for.
//
// PyTorch lets anybody change anything between two steps: the data of a parameter, an entry of the
// state, an option of a group. So nothing is trusted: each step compares what it finds, object by
// object and pointer by pointer, with what stood there when the plan was made. Where something else
// stands there, the front-end looks closely and makes another plan.
//
// No tensor's values are read, so tensors of all devices are watched alike, and none is waited for.
//
// No link against libtorch: what a plan is made of comes through the DLPack exchange API of the
// tensor type, or from attributes where an older PyTorch has none. Each step looks again through
// functions of torch's stable C ABI, where the process has them, and else in the same way.
//
// Nothing that is watched is held by more than its Python object: torch.utils.swap_tensors, and
// with it module.to() where it swaps, refuse tensors that others hold a use count of.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include "dlpack.h"

namespace adamas {

// What a plan needs to know of a tensor.
struct View {
    void* data = nullptr;
    std::int64_t count = 0;
    // 0 where it is contiguous; otherwise a hash of its sizes and strides, but those of size 1.
    std::uint64_t layout = 0;
    std::uint64_t shape = 0;          // a hash of its sizes
    std::int64_t reach = 0;           // in elements, from the first to the last
    std::int64_t device = 0;          // type and index, as DLPack has them
    std::uint8_t code = 0, bits = 0;  // of the dtype, as DLPack has them

    // Whether it is a contiguous CPU tensor of a dtype.
    bool is(std::uint8_t wanted_code, std::uint8_t wanted_bits) const {
        return device >> 32 == dlpack::cpu && layout == 0 && code == wanted_code &&
               bits == wanted_bits;
    }

    // Whether it differs in its address at most.
    bool is_like(const View& other) const {
        return code == other.code && bits == other.bits && shape == other.shape &&
               count == other.count && layout == other.layout && device == other.device;
    }

    std::uintptr_t start() const { return reinterpret_cast<std::uintptr_t>(data); }
    std::uintptr_t end() const {
        return start() + static_cast<std::uintptr_t>(reach) * ((bits + 7) / 8);
    }
};

// Functions that read a tensor, from torch's stable C ABI (aoti_torch/c/shim.h). A `tensor` is the
// address of an at::Tensor, which stands in the Python object. They return 0 where all is well.
//
// The exchange API makes a second reference to a tensor and drops it at every reading. While the
// Python object alone holds the tensor, each of the two hands that object on, which takes longer
// than the reading; these functions make no reference.
struct Shim {
    std::int32_t (*data)(void* tensor, void** out) = nullptr;
    std::int32_t (*rank)(void* tensor, std::int64_t* out) = nullptr;
    std::int32_t (*sizes)(void* tensor, std::int64_t** out) = nullptr;
    std::int32_t (*strides)(void* tensor, std::int64_t** out) = nullptr;
    std::int32_t (*dtype)(void* tensor, std::int32_t* out) = nullptr;
    std::int32_t (*layout)(void* tensor, std::int32_t* out) = nullptr;
    std::int32_t (*device_type)(void* tensor, std::int32_t* out) = nullptr;
    std::int32_t (*device_index)(void* tensor, std::int32_t* out) = nullptr;

    // The functions of this process; null where one of them is missing.
    static const Shim* find();
};

// Reads tensors of one framework.
class Reader {
public:
    explicit Reader(nanobind::handle tensor_type);

    bool is_fast() const { return api_ != nullptr; }

    // Returns false, with no Python error set, where the object is no plain tensor. Fills a View in
    // place: copying one whose parts were just written would take as long as reading it.
    bool read(PyObject* tensor, View& view);

    // The same of an object whose type is known to be that of a plain tensor, in less time.
    bool look(PyObject* tensor, View& view);

    // Whether such a tensor is at an address.
    bool is_at(PyObject* tensor, const void* data);

private:
    // A dtype, and what a View says of it.
    struct Type {
        nanobind::object dtype;
        std::uint8_t code, bits;
    };

    // The numbers that torch has for what a View says of a tensor's kind.
    struct Kind {
        std::int32_t dtype, layout, device_type, device_index;
        std::int64_t device;
        std::uint8_t code, bits;
    };

    void find_handles(PyObject* tensor);
    const Kind* kind_of(PyObject* tensor, const Kind& wanted);
    bool describe(PyObject* tensor, dlpack::Tensor& found) const;
    bool read_attributes(PyObject* object, View& view);
    const Type& type_of(nanobind::object dtype);
    dlpack::Device device_of(nanobind::object device);

    nanobind::object tensor_type_;
    const dlpack::ExchangeApi* api_ = nullptr;
    const Shim* shim_ = nullptr;  // null where handles cannot be found, or are not yet
    std::size_t handle_ = 0;      // where in a Python object
    bool has_looked_for_handles_ = false;
    std::vector<Kind> kinds_;                // seen so far
    std::vector<Type> types_;                // seen so far by read_attributes()
    std::vector<nanobind::object> devices_;  // the same, but for the CPU
};

// What was in a dict, in order.
using Items = std::vector<std::pair<nanobind::object, nanobind::object>>;

class TensorWatch {
public:
    // One call at a time. Gradients that are borrowed are given back at its end.
    class Turn {
    public:
        // Throws std::runtime_error where another call is in flight.
        explicit Turn(TensorWatch& watch);

        // Is not taken where another call is in flight, or the watch is closed.
        Turn(TensorWatch& watch, std::nothrow_t);

        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;
        ~Turn();

        bool is_taken() const { return is_taken_; }

    private:
        TensorWatch& watch_;
        bool is_taken_;
    };

    // `groups` are the optimizer's own dicts, `idle` parameters that must not have a gradient.
    TensorWatch(nanobind::handle tensor_type, nanobind::handle parameter_type,
                nanobind::list groups, nanobind::sequence idle);

    // With `members`: tuples (parameter, its state dict, further tensors that must stay). Plain
    // tensors in a state dict must stay where they are, too.
    TensorWatch(nanobind::type_object tensor_type, nanobind::type_object parameter_type,
                nanobind::list groups, nanobind::sequence members, nanobind::sequence idle);

    // -- what is watched ---------------------------------------------------------------------

    // Adds a parameter that is stepped where it has a gradient, with its state. Members stand in
    // the order of the optimizer's state. One that is not always read may be anything while it has
    // no gradient.
    View add(nanobind::object parameter, nanobind::dict state, bool is_always_read = false);

    // Adds a tensor that must stay where it is, of the member added last.
    View keep(nanobind::object tensor);

    // Throws std::invalid_argument where the object is no plain tensor.
    View read(nanobind::handle tensor);

    bool is_fast() const { return reader_.is_fast(); }

    // Lets turns be taken that ask whether they may. At first none may.
    void open() { is_closed_.store(false); }

    // Lets none begin that asks; false while one is in flight, to be asked again.
    bool close() {
        is_closed_.store(true);
        return caller_.load() == 0;
    }

    // Whether a call of this thread is in flight.
    bool is_called_here() const { return caller_.load() == PyThread_get_thread_ident(); }

    std::size_t group_count() const { return groups_.size(); }
    nanobind::handle group(std::size_t i) const { return groups_[i].options; }
    nanobind::handle parameter(std::size_t i) const { return members_[i].parameter; }

    // What Python's garbage collector asks for: hooks and models may hold the optimizer that this
    // watch belongs to, and are held by its tensors.
    int traverse(visitproc visit, void* arg) const;
    void clear();

    // -- whether it is as it was: within a Turn ----------------------------------------------

    // All but the learning rates, which are free: one may be a tensor on another device.
    bool same_groups(nanobind::handle groups) const;
    bool same_state(nanobind::handle state) const;

    // Looks at all tensors and takes hold of the gradients. False where one does not fit its
    // parameter, or is not apart from all that a step writes.
    bool same_tensors();
    bool has_gradient(std::size_t i) const { return gradients_[i].tensor.is_valid(); }
    void* gradient(std::size_t i) const { return gradients_[i].data; }

    // All of it, in a Turn of its own; writes the addresses of the gradients into an array. False
    // where a member has none.
    bool gradients(nanobind::handle groups, nanobind::handle state, nanobind::handle addresses);

private:
    struct Group {
        nanobind::dict options;
        nanobind::list parameters;
        Items items;  // of `options`
    };

    // A tensor, and where it was.
    struct Entry {
        nanobind::object tensor;
        const void* data;
    };

    struct Member {
        nanobind::object parameter;
        View view;  // of the parameter
        nanobind::dict state;
        Items items;  // of `state`
        std::vector<Entry> entries;
        bool is_always_read;
    };

    struct Gradient {
        nanobind::object tensor;  // null but during a step, and where there is none
        void* data = nullptr;
        // Where it was, or might have been, without meeting what is written.
        std::uintptr_t free_from = 0, free_to = 0;
    };

    // Memory that a step writes.
    struct Span {
        std::uintptr_t start, end;
    };

    bool is_plain(PyObject* object) const;
    void keep(nanobind::handle tensor, const View& view);
    bool same_member(const Member& member);
    bool has_values(nanobind::handle gradient, const View& view) const;
    bool is_apart(Gradient& gradient, const View& view);
    void sort_written();

    Reader reader_;
    nanobind::object tensor_type_, parameter_type_;
    nanobind::str grad_, lr_, is_neg_;
    std::vector<Group> groups_;
    std::vector<nanobind::object> parameters_;  // of all groups, in order
    std::vector<Member> members_;
    std::vector<std::size_t> stateful_;  // members that keep a state
    std::vector<nanobind::object> idle_;
    std::vector<Gradient> gradients_;  // of the members
    std::vector<Span> written_;        // apart and in order once it is sorted
    bool is_sorted_ = false;
    bool take() {
        unsigned long nobody = 0;
        return caller_.compare_exchange_strong(nobody, PyThread_get_thread_ident());
    }

    std::atomic<unsigned long> caller_{0};  // the thread that has its turn; 0: none
    std::atomic<bool> is_closed_{true};
};

}  // namespace adamas
