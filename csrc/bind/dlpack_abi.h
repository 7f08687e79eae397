// The DLPack 1.x structs behind torch.Tensor.__dlpack_c_exchange_api__, laid out as the DLPack specification says.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fokker::dlpack {

constexpr std::uint32_t kMajorVersion = 1;

enum DeviceType : std::int32_t { kCPU = 1, kCUDA = 2, kCUDAHost = 3, kCUDAManaged = 13 };
enum TypeCode : std::uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4, kComplex = 5, kBool = 6 };

struct Version {
  std::uint32_t major, minor;
};
struct Device {
  std::int32_t type, id;
};
struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};
struct ExchangeHeader {
  Version version;
  ExchangeHeader* previous;
};
struct ExchangeApi {
  ExchangeHeader header;
  void* unused[3];  // allocation and owning conversions: outputs are allocated by the caller
  int (*borrow)(void* py_object, Tensor* out);
  int (*current_stream)(std::int32_t device_type, std::int32_t device_id, void** out);
};

static_assert(sizeof(Device) == 8 && sizeof(DataType) == 4, "DLPack ABI");
static_assert(sizeof(Tensor) == 48 && offsetof(Tensor, shape) == 24 && offsetof(Tensor, byte_offset) == 40,
              "DLPack ABI");
static_assert(sizeof(ExchangeHeader) == 16 && offsetof(ExchangeApi, borrow) == 40, "DLPack ABI");

}  // namespace fokker::dlpack
