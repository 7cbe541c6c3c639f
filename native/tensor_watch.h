// Whether the tensors of a torch.optim.Optimizer are those that a plan was made for.
//
// PyTorch lets anybody change anything between two steps: the data of a parameter, an entry of the
// state, an option of a group. So nothing is trusted: each step compares what it finds, object by
// object and pointer by pointer, with what stood there when the plan was made. Where something else
// stands there, the front-end looks closely and makes another plan.
//
// No tensor's values are read, so tensors of all devices are watched alike, and none is waited for.
//
// No link against libtorch: addresses come through the DLPack exchange API of the tensor type, or
// from data_ptr() where an older PyTorch has none.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
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
    std::int64_t device = 0;          // type and index, as DLPack has them
    std::uint8_t code = 0, bits = 0;  // of the dtype, as DLPack has them

    // Whether it is a contiguous CPU tensor of a dtype.
    bool is(std::uint8_t wanted_code, std::uint8_t wanted_bits) const {
        return device >> 32 == dlpack::cpu && layout == 0 && code == wanted_code &&
               bits == wanted_bits;
    }

    // Whether it differs in its address at most.
    bool is_like(const View& other) const {
        return code == other.code && bits == other.bits && count == other.count &&
               layout == other.layout && device == other.device;
    }
};

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
    explicit Reader(nanobind::handle tensor_type);

    bool is_fast() const { return api_ != nullptr; }

    // Returns a second reference to a tensor, or null. While a tensor has but one, PyTorch hands
    // its Python object back and forth at every reading, which takes as long as the reading.
    Reference refer(PyObject* tensor) const;

    // Returns false, with no Python error set, where the object is no plain tensor. Fills a View in
    // place: copying one whose parts were just written would take as long as reading it.
    bool read(PyObject* tensor, View& view);

    // Whether a plain tensor is at an address.
    bool is_at(PyObject* tensor, const void* data);

private:
    // A dtype, and what a View says of it.
    struct Type {
        nanobind::object dtype;
        std::uint8_t code, bits;
    };

    bool describe(PyObject* tensor, dlpack::Tensor& found) const;
    bool read_attributes(PyObject* object, View& view);
    const Type& type_of(nanobind::object dtype);
    dlpack::Device device_of(nanobind::object device);

    nanobind::object tensor_type_;
    const dlpack::ExchangeApi* api_ = nullptr;
    std::vector<Type> types_;                // seen so far by read_attributes()
    std::vector<nanobind::object> devices_;  // the same, but for the CPU
};

// What was in a dict, in order.
using Items = std::vector<std::pair<nanobind::object, nanobind::object>>;

class TensorWatch {
public:
    // One call at a time; throws std::runtime_error where another thread is in one. Gradients that
    // are borrowed are given back at its end.
    class Turn {
    public:
        explicit Turn(TensorWatch& watch);
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;
        ~Turn();

    private:
        TensorWatch& watch_;
    };

    // `groups` are the optimizer's own dicts, `idle` parameters that have no gradient.
    TensorWatch(nanobind::handle tensor_type, nanobind::handle parameter_type,
                nanobind::list groups, nanobind::sequence idle);

    // With `members`: tuples (parameter, its state dict, further tensors that must stay). Plain
    // tensors in a state dict must stay where they are, too.
    TensorWatch(nanobind::type_object tensor_type, nanobind::type_object parameter_type,
                nanobind::list groups, nanobind::sequence members, nanobind::sequence idle);

    // -- what is watched ---------------------------------------------------------------------

    // Adds a parameter that is stepped, with its state. Members stand in the order of the
    // optimizer's state.
    View add(nanobind::object parameter, nanobind::dict state);

    // Adds a tensor that must stay where it is, of the member added last.
    View keep(nanobind::object tensor);

    // Throws std::invalid_argument where the object is no plain tensor.
    View read(nanobind::handle tensor);

    bool is_fast() const { return reader_.is_fast(); }
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
    bool same_members();

    // Takes hold of the gradients; false where one does not fit its parameter.
    bool borrow_gradients();
    void* gradient(std::size_t i) const { return gradients_[i].data; }

    // All of it, in a Turn of its own; writes the addresses of the gradients into an array.
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
    };

    struct Gradient {
        nanobind::object tensor;  // null but during a step
        void* data = nullptr;
    };

    bool is_plain(PyObject* object) const;
    void keep(nanobind::handle tensor, const void* data);

    Reader reader_;
    nanobind::object tensor_type_, parameter_type_;
    nanobind::str grad_, lr_;
    std::vector<Group> groups_;
    std::vector<nanobind::object> parameters_;  // of all groups, in order
    std::vector<Member> members_;
    std::vector<Reference> references_;  // to all tensors of the members
    std::vector<std::size_t> stateful_;  // members that keep a state
    std::vector<nanobind::object> idle_;
    std::vector<Gradient> gradients_;  // of the members
    std::atomic<bool> busy_{false};
};

}  // namespace adamas
