// Whether the tensors of a torch.optim.Optimizer are those that a plan was made for.
//
// PyTorch lets anybody change anything between two steps: the data of a parameter, an entry of the
// state, an option of a group. So nothing is trusted: each step compares what it finds, object by
// object and pointer by pointer, with what stood there when the plan was made. Where something else
// stands there, the front-end looks closely and makes another plan.
//
// No tensor's values are read, so tensors of all devices are watched alike, and none is waited for.
// Of a distributed tensor, this process's part is looked at, and how it is laid out.
//
// Nothing that is watched is held by more than its Python object: torch.utils.swap_tensors, and
// with it module.to() where it swaps, refuse tensors that others hold a use count of.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "distributed.h"
#include "tensor_reader.h"
#include "turn.h"
#include "written.h"

namespace adamas {

// Tells whether anything was put into a dict or taken out: CPython before 3.12 numbers what dicts
// become (PEP 509). Looking at each item takes longer.
class DictVersion {
public:
#if PY_VERSION_HEX < 0x030c0000
    bool is_that_of(PyObject* dict) const { return of(dict) == version_; }
    void take(PyObject* dict) { version_ = of(dict); }

private:
    static std::uint64_t of(PyObject* dict) {
        return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag;
    }

    std::uint64_t version_ = 0;  // which no dict has
#else
    bool is_that_of(PyObject*) const { return false; }
    void take(PyObject*) {}
#endif
};

// A dict, and what was in it, in order.
class WatchedDict {
public:
    using Items = std::vector<std::pair<nanobind::object, nanobind::object>>;

    explicit WatchedDict(nanobind::dict dict);

    const nanobind::dict& dict() const { return dict_; }
    const Items& items() const { return items_; }

    // Whether the same is in it, but for what `free_key` may stand for.
    bool is_same(PyObject* free_key = nullptr) const {
        return version_.is_that_of(dict_.ptr()) || has_same_items(free_key);
    }

    int traverse(visitproc visit, void* arg) const;

private:
    bool has_same_items(PyObject* free_key) const;

    mutable DictVersion version_;  // when it was found to be the same
    nanobind::dict dict_;
    Items items_;
};

class TensorWatch {
public:
    // `groups` are the optimizer's own dicts, `idle` parameters that must not have a gradient.
    TensorWatch(nanobind::handle tensor_type, nanobind::handle parameter_type,
                nanobind::list groups, nanobind::sequence idle, nanobind::handle distributed);

    // With `members`: tuples (parameter, its state dict, further tensors that must stay). Tensors
    // in a state dict, plain or distributed, must stay where they are, too.
    TensorWatch(nanobind::type_object tensor_type, nanobind::type_object parameter_type,
                nanobind::list groups, nanobind::sequence members, nanobind::sequence idle,
                nanobind::object distributed);

    // -- what is watched ---------------------------------------------------------------------

    // Adds a parameter that is stepped where it has a gradient, with its state. Members stand in
    // the order of the optimizer's state. One that is not always read may be anything while it has
    // no gradient.
    View add(nanobind::object parameter, nanobind::dict state, bool is_always_read = false);

    // Adds a tensor that must stay where it is, of the member added last.
    View keep(nanobind::object tensor);

    // Of a plain tensor, or the part of a distributed one. Throws std::invalid_argument where the
    // object is neither.
    View read(nanobind::handle tensor);

    bool is_fast() const { return reader_.is_fast(); }

    // Tells autograd that members have changed; false where Python has to.
    bool bump(nanobind::list members) { return reader_.bump(std::move(members)); }

    // How often the parameter of a member was written to, its part included.
    std::int64_t version(std::size_t i);

    Turns& turns() { return turns_; }

    // Gives gradients back, at the end of a Turn.
    void let_go();

    std::size_t group_count() const { return groups_.size(); }
    nanobind::handle group(std::size_t i) const { return groups_[i].options.dict(); }
    nanobind::handle parameter(std::size_t i) const { return members_[i].parameter; }

    // What Python's garbage collector asks for: hooks and models may hold the optimizer that this
    // watch belongs to, and are held by its tensors.
    int traverse(visitproc visit, void* arg) const;
    void clear();

    // -- whether it is as it was: within a Turn ----------------------------------------------

    // All but the learning rates, which are free: one may be a tensor on another device.
    bool same_groups(nanobind::handle groups) const;
    bool same_state(nanobind::handle state);

    // Looks at all tensors and takes hold of the gradients. False where one does not fit its
    // parameter, or is not apart from all that a step writes.
    bool same_tensors();
    bool has_gradient(std::size_t i) const { return !gradients_[i].held.is_none(); }
    void* gradient(std::size_t i) const { return gradients_[i].data; }

    // All of it, in a Turn of its own; writes the addresses of the gradients into an array. False
    // where a member has none.
    bool gradients(nanobind::handle groups, nanobind::handle state, nanobind::handle addresses);

private:
    struct Group {
        WatchedDict options;
        nanobind::list parameters;
    };

    // A tensor, and where it was.
    struct Entry {
        nanobind::object tensor;
        const void* data;
    };

    struct Member {
        nanobind::object parameter;
        View view;              // of the parameter
        nanobind::object spec;  // of a distributed one, else null
        WatchedDict state;
        std::vector<Entry> entries;
        bool is_always_read;
    };

    struct Gradient {
        HeldGradient held;      // none but during a step
        nanobind::object spec;  // another than the parameter's that it has had, laid out alike
        void* data = nullptr;
        Span free;  // where it was, or might have been, without meeting what is written
    };

    bool is_plain(PyObject* object) const;
    void keep(nanobind::handle tensor, const View& view);
    bool same_member(const Member& member);
    bool same_entry(const Entry& entry);
    bool same_distributed(const Member& member, View& view);
    void take_gradient(nanobind::handle parameter, HeldGradient& gradient) const;
    bool take_part(const Member& member, Gradient& gradient) const;
    bool look_at_gradient(const Member& member, Gradient& gradient, View& view);
    bool has_values(const HeldGradient& gradient, const View& view) const;

    Reader reader_;
    Distributed distributed_;
    nanobind::object tensor_type_, parameter_type_;
    std::vector<Group> groups_;
    std::vector<nanobind::object> parameters_;  // of all groups, in order
    std::vector<Member> members_;
    std::vector<std::size_t> stateful_;  // members that keep a state
    DictVersion state_version_;          // of the optimizer's, when it had theirs
    std::vector<nanobind::object> idle_;
    std::vector<Gradient> gradients_;  // of the members
    Written written_;
    Turns turns_;
};

}  // namespace adamas
