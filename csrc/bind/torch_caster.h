// pybind11 caster from torch.Tensor to TensorView, and the translation of C++ errors into Python's.
#pragma once

#include <pybind11/pybind11.h>

#include "bind/dlpack_abi.h"
#include "common/check.h"

namespace fokker::bind {

namespace py = pybind11;

struct Torch {  // filled once by init(); kept for the life of the process
  const dlpack::ExchangeApi* api = nullptr;
  PyTypeObject* tensor = nullptr;
  PyTypeObject* parameter = nullptr;
  PyObject* cuda_error = nullptr;
};
inline Torch& torch_state() {
  static Torch t;
  return t;
}

inline void init(py::type tensor, py::type parameter, py::object cuda_error) {
  py::object capsule = tensor.attr("__dlpack_c_exchange_api__");
  auto* api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!api) throw py::error_already_set();
  if (api->header.version.major != dlpack::kMajorVersion || !api->borrow || !api->current_stream)
    throw py::import_error("this torch speaks another major version of DLPack (fokker was built for version 1)");
  torch_state() = {api, reinterpret_cast<PyTypeObject*>(tensor.inc_ref().ptr()),
                   reinterpret_cast<PyTypeObject*>(parameter.inc_ref().ptr()), cuda_error.inc_ref().ptr()};
}

inline bool dtype_of(dlpack::DataType t, DType& out) {
  if (t.lanes != 1) return false;
  switch (t.code << 8 | t.bits) {
    case dlpack::kFloat << 8 | 16:
      out = DType::f16;
      return true;
    case dlpack::kBFloat << 8 | 16:
      out = DType::bf16;
      return true;
    case dlpack::kFloat << 8 | 32:
      out = DType::f32;
      return true;
    case dlpack::kFloat << 8 | 64:
      out = DType::f64;
      return true;
    case dlpack::kInt << 8 | 64:
      out = DType::i64;
      return true;
    default:
      return false;
  }
}

// Exactly torch.Tensor or nn.Parameter: a subclass (FakeTensor, ...) may have no memory behind it.
inline bool load(PyObject* o, TensorView& v) {
  const Torch& torch = torch_state();
  if (Py_TYPE(o) != torch.tensor && Py_TYPE(o) != torch.parameter) return false;
  dlpack::Tensor t;
  if (torch.api->borrow(o, &t) != 0) {
    PyErr_Clear();
    raise<TypeError>("a dense (strided) tensor on the CPU or a CUDA device expected");
  }
  if (!dtype_of(t.dtype, v.dtype))
    raise<TypeError>("unsupported dtype (DLPack code ", int(t.dtype.code), ", ", int(t.dtype.bits),
                     " bits): float16, bfloat16, float32, float64 or int64 expected");
  switch (t.device.type) {
    case dlpack::kCPU:
    case dlpack::kCUDAHost:
      v.device = Device::cpu;
      break;
    case dlpack::kCUDA:
    case dlpack::kCUDAManaged:
      v.device = Device::cuda;
      break;
    default:
      raise<TypeError>("unsupported device (DLPack type ", t.device.type, "): CPU or CUDA expected");
  }
  v.device_id = t.device.id;
  v.ndim = t.ndim;
  v.shape = t.shape;
  v.strides = t.strides;
  v.data = static_cast<char*>(t.data) + t.byte_offset;
  if (!t.data && v.numel() != 0) raise<TypeError>("a tensor has no storage");
  return true;
}

inline void* current_stream(int device_id) {
  void* s = nullptr;
  if (torch_state().api->current_stream(dlpack::kCUDA, device_id, &s) != 0) throw py::error_already_set();
  return s;
}

inline void register_errors() {
  py::register_local_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const TypeError& e) {
      PyErr_SetString(PyExc_TypeError, e.what());
    } catch (const ValueError& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    } catch (const CudaError& e) {
      PyErr_SetString(torch_state().cuda_error, e.what());
    }
  });
}

// Long calls let other Python threads run; for short ones the hand-over would cost more than it gives.
template <typename F> void without_gil(std::int64_t elements, F&& f) {
  if (elements < 2048) return f();
  py::gil_scoped_release nogil;
  f();
}

}  // namespace fokker::bind

namespace pybind11::detail {
template <> struct type_caster<fokker::TensorView> {
  PYBIND11_TYPE_CASTER(fokker::TensorView, const_name("torch.Tensor"));
  bool load(handle src, bool) { return fokker::bind::load(src.ptr(), value); }
};
}  // namespace pybind11::detail
