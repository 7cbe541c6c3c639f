// Reads what plans need to know of a tensor of torch.
//
// No link against libtorch: what a plan is made of comes through the DLPack exchange API of the
// tensor type, or from attributes where an older PyTorch has none. Each step looks again through
// functions of torch's stable C ABI, where the process has them, and else in the same way.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <utility>
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
    std::int32_t cpu = -1;  // what device_type() says of tensors on the CPU

    // Tells autograd that a tensor has changed: of the C++ API, and null where it has another name
    // by now. It throws for tensors that torch lets nobody change.
    void (*bump)(const void* tensor) = nullptr;

    // How often a tensor was written to: of the C++ API, too, and throws for tensors that do not
    // count that.
    std::int64_t (*version)(const void* tensor) = nullptr;

    // Of the C++ API as well, where all of these are there: the gradient of what an at::Tensor
    // points to, the address of an at::Tensor that may point to `undefined`.
    void* const* (*gradient)(const void* implementation) = nullptr;
    const void* undefined = nullptr;

    // Makes another at::Tensor for the same tensor, and takes it away again.
    std::int32_t (*hold)(void* const* tensor, void** out) = nullptr;
    std::int32_t (*release)(void* tensor) = nullptr;

    // The functions of this process; null where one of them is missing.
    static const Shim* find();
};

// A gradient, held while it is read: by its Python object, or, where it has none, by an at::Tensor.
// A backward pass leaves gradients without one, and none is made to read them.
class HeldGradient {
public:
    HeldGradient() = default;
    HeldGradient(HeldGradient&& other) noexcept
        : object_(std::move(other.object_)),
          handle_(std::exchange(other.handle_, nullptr)),
          release_(other.release_) {}
    HeldGradient& operator=(HeldGradient&&) = delete;
    ~HeldGradient() { let_go(); }

    bool is_none() const { return !object_.is_valid() && handle_ == nullptr; }
    // Null where `handle` is not.
    const nanobind::object& object() const { return object_; }
    void* handle() const { return handle_; }

    void take(nanobind::object object) {
        let_go();
        object_ = std::move(object);
    }

    void take(void* handle, std::int32_t (*release)(void*)) {
        let_go();
        handle_ = handle;
        release_ = release;
    }

    void let_go() {
        object_.reset();
        if (handle_ != nullptr) {
            release_(std::exchange(handle_, nullptr));
        }
    }

private:
    nanobind::object object_;
    void* handle_ = nullptr;
    std::int32_t (*release_)(void*) = nullptr;
};

// Reads tensors of one framework.
class Reader {
public:
    // The type must outlive the reader.
    explicit Reader(nanobind::handle tensor_type);

    bool is_fast() const { return api_ != nullptr; }

    // Returns false, with no Python error set, where the object is no plain tensor. Fills a View in
    // place: copying one whose parts were just written would take as long as reading it.
    bool read(PyObject* tensor, View& view);

    // The same of an object whose type is known to be that of a plain tensor, in less time.
    bool look(PyObject* tensor, View& view);

    // The same of a gradient that has no Python object. False, too, where it is of a kind that has
    // not been seen, and an object is needed.
    bool look(const HeldGradient& gradient, View& view);

    // Takes hold of the gradient of an object whose type is known to be that of a tensor, as its
    // attribute `grad` would give it. False where that is to be asked.
    bool take_gradient(PyObject* tensor, HeldGradient& gradient) const;

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
    std::size_t object_place(PyObject* tensor) const;
    bool look_at(void* handle, PyObject* tensor, View& view);
    const Kind* kind_of(PyObject* tensor, std::int32_t dtype, std::int32_t layout,
                        std::int32_t device_type, std::int32_t device_index);
    bool read_attributes(PyObject* object, View& view);
    const Type& type_of(nanobind::object dtype);
    dlpack::Device device_of(nanobind::object device);

    const PyObject* tensor_type_;
    const dlpack::ExchangeApi* api_ = nullptr;
    const Shim* shim_ = nullptr;  // null where handles cannot be found, or are not yet
    std::size_t handle_ = 0;      // where in a Python object
    std::size_t object_ = 0;      // where in a tensor of torch its Python object is told, if known
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
    return look_at(reinterpret_cast<char*>(tensor) + handle_, tensor, view);
}

inline bool Reader::look(const HeldGradient& gradient, View& view) {
    return look_at(gradient.handle(), nullptr, view);
}

inline bool Reader::look_at(void* handle, PyObject* tensor, View& view) {
    std::int32_t dtype, layout, device_type, device_index = 0;
    if ((shim_->dtype(handle, &dtype) | shim_->layout(handle, &layout) |
         shim_->device_type(handle, &device_type)) != 0 ||
        (device_type != shim_->cpu && shim_->device_index(handle, &device_index) != 0))
        [[unlikely]] {
        return false;
    }
    const Kind* kind = kind_of(tensor, dtype, layout, device_type, device_index);
    if (kind == nullptr) [[unlikely]] {
        return false;
    }
    std::int64_t rank;
    std::int64_t *sizes, *strides;
    if ((shim_->data(handle, &view.data) | shim_->rank(handle, &rank) |
         shim_->sizes(handle, &sizes) | shim_->strides(handle, &strides)) != 0) [[unlikely]] {
        return false;
    }
    view.device = kind->device;
    view.element = kind->element;
    lay_out(view, static_cast<std::int32_t>(rank), sizes, strides);
    return true;
}

inline bool Reader::take_gradient(PyObject* tensor, HeldGradient& gradient) const {
    if (object_ == 0) [[unlikely]] {
        return false;
    }
    using Address = const char* const*;
    const char* implementation =
        *reinterpret_cast<Address>(reinterpret_cast<const char*>(tensor) + handle_);
    void* const* found = shim_->gradient(implementation);
    if (*found == shim_->undefined) {
        gradient.let_go();
        return true;
    }
    auto object = *reinterpret_cast<PyObject* const*>(static_cast<const char*>(*found) + object_);
    if (object != nullptr) {
        if (reinterpret_cast<std::uintptr_t>(object) % alignof(PyObject) != 0) [[unlikely]] {
            return false;
        }
        gradient.take(nanobind::borrow(object));
        return true;
    }
    void* handle = nullptr;
    if (shim_->hold(found, &handle) != 0) [[unlikely]] {
        return false;
    }
    gradient.take(handle, shim_->release);
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
// one, or unknown and `tensor` is null. The numbers come one by one, as they were written: reading
// two of them at once right after that takes longer than all the rest.
inline const Reader::Kind* Reader::kind_of(PyObject* tensor, std::int32_t dtype,
                                           std::int32_t layout, std::int32_t device_type,
                                           std::int32_t device_index) {
    for (const Kind& known : kinds_) {
        if (((known.dtype ^ dtype) | (known.layout ^ layout) | (known.device_type ^ device_type) |
             (known.device_index ^ device_index)) == 0) {
            return &known;
        }
    }
    View view;
    if (tensor == nullptr || !read(tensor, view)) {
        return nullptr;
    }
    kinds_.push_back({dtype, layout, device_type, device_index, view.device, view.element});
    return &kinds_.back();
}

}  // namespace adamas
