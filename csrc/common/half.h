// float16 and bfloat16 bits to float32 and back, round to nearest even; the same code on host and device.
#pragma once

#include "math/arithmetic.h"

namespace fokker {

struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

FK_HD FK_INLINE float to_float(BFloat16 h) { return math::bit_cast<float>(std::uint32_t(h.bits) << 16); }
FK_HD FK_INLINE float to_float(Half h) {
  const std::uint32_t sign = std::uint32_t(h.bits & 0x8000u) << 16, rest = h.bits & 0x7fffu;
  // Shifted into place the exponent is 112 short; a product puts it right, subnormals included.
  const float magnitude = math::bit_cast<float>(rest << 13) * math::bit_cast<float>(std::uint32_t(0x77800000));
  const std::uint32_t bits = rest >= 0x7c00u ? 0x7f800000u | rest << 13 : math::bit_cast<std::uint32_t>(magnitude);
  return math::bit_cast<float>(bits | sign);
}
FK_HD FK_INLINE BFloat16 to_bfloat16(float f) {
  const auto u = math::bit_cast<std::uint32_t>(f);
  const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return {static_cast<std::uint16_t>(f != f ? 0x7fc0u : rounded)};
}
FK_HD FK_INLINE Half to_half(float f) {
  const auto u = math::bit_cast<std::uint32_t>(f);
  const std::uint32_t sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  std::uint32_t h;
  if (a > 0x7f800000u) h = 0x7e00u;
  else if (a >= 0x477ff000u) h = 0x7c00u;  // 65520 and above round to infinity
  else if (a < 0x38800000u) {              // below 2^-14: a sum with 0.5 rounds to the subnormal grid
    h = math::bit_cast<std::uint32_t>(math::bit_cast<float>(a) + 0.5f) - 0x3f000000u;
  } else h = (a + 0xc8000fffu + ((a >> 13) & 1u)) >> 13;
  return {static_cast<std::uint16_t>(h | sign)};
}

}  // namespace fokker
