// Reads what plans need to know of a tensor of torch.
//
// No link against libtorch: what a plan is made of comes through the DLPack exchange API of the
// tensor type, or from attributes where an older PyTorch has none. Each step looks again through
// functions of torch's stable C ABI, where the process has them, and else in the same way.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dlpack.h"
#include "splitmix.h"
#include "storage.h"
#include "written.h"

namespace adamas {

// What a plan needs to know of a tensor.
struct View {
    void* data = nullptr;
    std::int64_t count = 0;
    // 0 where it is contiguous; otherwise a hash of its sizes and strides, but those of size 1.
    std::uint64_t layout = 0;
    std::uint64_t shape = 0;  // a hash of its sizes
    std::int64_t reach = 0;   // in elements, from the first to the last
    std::int64_t device = 0;  // type and index, as DLPack has them
    Element element;          // of the dtype

    // Whether it is a contiguous CPU tensor of a dtype.
    bool is(Element wanted) const {
        return device >> 32 == dlpack::cpu && layout == 0 && element == wanted;
    }

    // Whether it differs in its address at most.
    bool is_like(const View& other) const {
        return element == other.element && shape == other.shape && count == other.count &&
               layout == other.layout && device == other.device;
    }

    Span span() const {
        auto start = reinterpret_cast<std::uintptr_t>(data);
        return {start, start + static_cast<std::uintptr_t>(reach) * ((element.bits + 7) / 8)};
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

    // Tells autograd that a tensor has changed: of the C++ API, and null where it has another name
    // by now. It throws for tensors that torch lets nobody change.
    void (*bump)(const void* tensor) = nullptr;

    // How often a tensor was written to: of the C++ API, too, and throws for tensors that do not
    // count that.
    std::int64_t (*version)(const void* tensor) = nullptr;

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

    // Tells autograd that tensors, some of which were read, have changed. False where that is to be
    // done in Python, of all of them: in a fifth of the time of a small step.
    bool bump(nanobind::list tensors);

    // How often a tensor was written to; 0 of one that does not count that, as in inference mode.
    std::int64_t version(PyObject* tensor) const;

private:
    // A dtype, and what a View says of it.
    struct Type {
        nanobind::object dtype;
        Element element;
    };

    // The numbers that torch has for what a View says of a tensor's kind.
    struct Kind {
        std::int32_t dtype, layout, device_type, device_index;
        std::int64_t device;
        Element element;
    };

    void find_handles(PyObject* tensor);
    const Kind* kind_of(PyObject* tensor, const Kind& wanted);
    bool read_attributes(PyObject* object, View& view);
    const Type& type_of(nanobind::object dtype);
    dlpack::Device device_of(nanobind::object device);

    const dlpack::ExchangeApi* api_ = nullptr;
    const Shim* shim_ = nullptr;  // null where handles cannot be found, or are not yet
    std::size_t handle_ = 0;      // where in a Python object
    bool has_looked_for_handles_ = false;
    std::vector<Kind> kinds_;                // seen so far
    std::vector<Type> types_;                // seen so far by read_attributes()
    std::vector<nanobind::object> devices_;  // the same, but for the CPU
};

// -- what each step does -------------------------------------------------------------------------

// Tells sizes and strides apart but for one chance in 2⁶³; never 0.
std::uint64_t hash_of(std::int32_t rank, const std::int64_t* sizes, const std::int64_t* strides);

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
        shape = shape * golden_ratio + static_cast<std::uint64_t>(sizes[i]);
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
inline std::int64_t number_of(dlpack::Device device) {
    return (static_cast<std::int64_t>(device.device_type) << 32) |
           static_cast<std::uint32_t>(device.device_id);
}

inline bool Reader::read(PyObject* tensor, View& view) {
    if (api_ == nullptr) [[unlikely]] {
        View found;  // so that `view` need not be in memory
        bool is_plain = read_attributes(tensor, found);
        view = found;
        return is_plain;
    }
    dlpack::Tensor found;
    if (api_->tensor_from_py_object_no_sync(tensor, &found) != 0) {
        PyErr_Clear();
        return false;
    }
    if (found.dtype.lanes != 1) {
        return false;
    }
    view.data = static_cast<char*>(found.data) + found.byte_offset;
    view.device = number_of(found.device);
    view.element = {found.dtype.code, found.dtype.bits};
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
    view.element = kind->element;
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
    kind.element = view.element;
    kinds_.push_back(kind);
    return &kinds_.back();
}

}  // namespace adamas
