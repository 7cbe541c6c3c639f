#include "tensor_reader.h"

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

#include <type_traits>
#include <utility>

#include "name.h"

namespace nb = nanobind;

namespace adamas {
namespace {

std::vector<std::int64_t> integers_of(nb::handle sequence) {
    std::vector<std::int64_t> integers;
    for (nb::handle each : sequence) {
        integers.push_back(nb::cast<std::int64_t>(each));
    }
    return integers;
}

bool equal(nb::handle a, const char* b) { return a.equal(nb::str(b)); }

}  // namespace

std::uint64_t hash_of(std::int32_t rank, const std::int64_t* sizes, const std::int64_t* strides) {
    std::uint64_t hash = 0;
    for (std::int32_t i = 0; i < rank; ++i) {
        if (sizes[i] != 1) {
            hash = mixed(hash + static_cast<std::uint64_t>(sizes[i]) + golden_ratio);
            hash = mixed(hash + static_cast<std::uint64_t>(strides[i]) + golden_ratio);
        }
    }
    return hash | 1;
}

Reader::Reader(nb::handle tensor_type) : tensor_type_(tensor_type.ptr()) {
    nb::object capsule = nb::getattr(tensor_type, "__dlpack_c_exchange_api__", nb::none());
    if (PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) {
        api_ = static_cast<const dlpack::ExchangeApi*>(
            PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
        while (api_ != nullptr && api_->version.major != dlpack::major_version) {
            api_ = api_->older;
        }
    }
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
            break;
        }
    }
#if !defined(Py_GIL_DISABLED)  // else an object may be going away while it is read
    if (handle_ != 0 && shim->gradient != nullptr) {
        auto other = nb::steal(PyObject_CallMethod(tensor, "detach", nullptr));  // must agree
        PyErr_Clear();
        std::size_t place = object_place(tensor);
        // It may be anything where somebody has what torch's functions give (__torch_function__).
        bool agrees = other.is_valid() && other.type().ptr() == tensor_type_ &&
                      object_place(other.ptr()) == place;
        object_ = agrees ? place : 0;
    }
#endif
}

// Where in the tensor of torch that an object stands for the address of this object stands; 0 where
// that is not to be found, or at two places.
std::size_t Reader::object_place(PyObject* tensor) const {
    constexpr std::size_t words = 16;  // a tensor of torch has more
    auto implementation =
        *reinterpret_cast<PyObject* const* const*>(reinterpret_cast<const char*>(tensor) + handle_);
    std::size_t place = 0;
    for (std::size_t i = 1; i < words; ++i) {
        if (implementation[i] == tensor) {
            if (place != 0) {
                return 0;
            }
            place = i * sizeof(PyObject*);
        }
    }
    return place;
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
        auto cpu =
            reinterpret_cast<std::int32_t (*)()>(dlsym(library, "aoti_torch_device_type_cpu"));
        all = all && cpu != nullptr;
        shim.data = all ? shim.data : nullptr;
        shim.cpu = all ? cpu() : -1;
        take(shim.bump, "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE");
        take(shim.version, "_ZNK2at10TensorBase8_versionEv");
        all = true;
        take(shim.gradient, "_ZNK3c1010TensorImpl4gradEv");
        take(shim.hold, "aoti_torch_new_tensor_handle");
        take(shim.release, "aoti_torch_delete_tensor_object");
        shim.undefined = dlsym(library, "_ZN3c1019UndefinedTensorImpl10_singletonE");
        if (!all || shim.undefined == nullptr) {
            shim.gradient = nullptr;
        }
        return shim;
    }();
    return found.data == nullptr ? nullptr : &found;
#endif
}

bool Reader::bump(nb::list tensors) {
    if (handle_ == 0 || shim_->bump == nullptr) {
        return false;
    }
    try {
        for (nb::handle tensor : tensors) {
            shim_->bump(reinterpret_cast<const char*>(tensor.ptr()) + handle_);
        }
    } catch (...) {
        return false;  // and Python says why
    }
    return true;
}

std::int64_t Reader::version(PyObject* tensor) const {
    static const Name version_name("_version");
    try {
        if (handle_ != 0 && shim_->version != nullptr) {
            return shim_->version(reinterpret_cast<const char*>(tensor) + handle_);
        }
        return nb::cast<std::int64_t>(version_name.of(nb::handle(tensor)));
    } catch (...) {
        return 0;
    }
}

bool Reader::read_attributes(PyObject* object, View& view) {
    try {
        nb::handle tensor(object);
        const Type& type = type_of(tensor.attr("dtype"));
        view.element = type.element;
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
    auto bits = static_cast<std::uint8_t>(8 * nb::cast<int>(dtype.attr("itemsize")));
    std::uint8_t code = dlpack::float_code;
    nb::str name(dtype);
    bool is_float = nb::cast<bool>(dtype.attr("is_floating_point"));
    if (nb::cast<bool>(dtype.attr("is_complex")) || equal(name, "torch.bool") ||
        (is_float && bits < 16)) {
        // A code of its own: no plan computes with these, but they are told apart.
        code = static_cast<std::uint8_t>(128 + types_.size());
    } else if (!is_float) {
        code = nb::cast<bool>(dtype.attr("is_signed")) ? dlpack::int_code : dlpack::uint_code;
    } else if (equal(name, "torch.bfloat16")) {
        code = dlpack::bfloat_code;
    }
    types_.push_back({std::move(dtype), {code, bits}});
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

}  // namespace adamas
