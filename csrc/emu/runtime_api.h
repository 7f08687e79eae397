// The part of the CUDA runtime's host interface that fokker calls, for kernels run on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#define CUDART_VERSION 0  // no toolkit

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

struct CUstream_st;
using cudaStream_t = CUstream_st*;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorLaunchFailure = 719
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin = 97, cudaDevAttrMultiProcessorCount = 16 };

namespace fokker::emu {

constexpr unsigned kMaxThreads = 1024;
constexpr std::size_t kStaticSharedLimit = 48 * 1024, kSharedLimit = 227 * 1024;

// The error of the last launch on this host thread, as the CUDA runtime keeps it.
struct LastError {
  cudaError_t code = cudaSuccess;
  std::string text;
};
inline LastError& last_error() {
  static thread_local LastError e;
  return e;
}
inline void record_error(cudaError_t code, std::string text) {
  if (last_error().code == cudaSuccess) last_error() = {code, std::move(text)};
}

// Dynamic shared memory that kernels were allowed beyond what every block has.
class DynamicLimits {
 public:
  void set(const void* kernel, std::size_t bytes) {
    const std::lock_guard<std::mutex> guard(mutex_);
    limits_[kernel] = bytes;
  }
  // 0 where nothing was asked for.
  std::size_t of(const void* kernel) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto found = limits_.find(kernel);
    return found == limits_.end() ? 0 : found->second;
  }

 private:
  std::mutex mutex_;
  std::map<const void*, std::size_t> limits_;
};
inline DynamicLimits& dynamic_limits() {
  static DynamicLimits limits;
  return limits;
}

}  // namespace fokker::emu

inline cudaError_t cudaPeekAtLastError() { return fokker::emu::last_error().code; }
// The text outlives the clearing: cudaGetErrorString is asked for it afterwards.
inline cudaError_t cudaGetLastError() {
  const cudaError_t e = fokker::emu::last_error().code;
  fokker::emu::last_error().code = cudaSuccess;
  return e;
}
inline const char* cudaGetErrorString(cudaError_t e) {
  if (e == cudaSuccess) return "no error";
  const std::string& text = fokker::emu::last_error().text;
  return text.empty() ? "invalid argument" : text.c_str();
}
inline cudaError_t cudaGetDevice(int* id) { return *id = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int id) { return id == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
inline cudaError_t cudaRuntimeGetVersion(int* v) { return *v = 0, cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* v) { return *v = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
  *value = what == cudaDevAttrMultiProcessorCount ? 2 : static_cast<int>(fokker::emu::kSharedLimit);
  return cudaSuccess;
}
template <typename K> inline cudaError_t cudaFuncSetAttribute(K* kernel, cudaFuncAttribute, int bytes) {
  if (bytes < 0 || std::size_t(bytes) > fokker::emu::kSharedLimit) {
    fokker::emu::record_error(cudaErrorInvalidValue, "invalid argument");
    return cudaErrorInvalidValue;
  }
  fokker::emu::dynamic_limits().set(reinterpret_cast<const void*>(kernel), std::size_t(bytes));
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, std::size_t bytes, cudaStream_t) {
  if (bytes) std::memset(p, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
