// How often one and the same datum occurs: the rounding errors of its copies are one, not independent.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "common/kde_sums.h"
#include "cpu/parallel.h"

namespace fokker::cpu {

template <typename T> std::uint64_t row_key(const T* row, std::int64_t d) {
  using Word = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  constexpr int lanes = 4;  // multiplications that need not wait for each other
  std::uint64_t part[lanes] = {1, 2, 3, 4};
  for (std::int64_t k = 0; k < d; ++k) {
    Word word;
    std::memcpy(&word, row + k, sizeof(T));
    std::uint64_t& p = part[k % lanes];
    p = (p ^ word) * 0x9e3779b97f4a7c15ull;
    p ^= p >> 32;
  }
  std::uint64_t key = 0;
  for (std::uint64_t p : part) key = (key ^ p) * 0xd6e8feb86659fd93ull, key ^= key >> 32;
  return key ? key : 1;  // 0 marks an empty place
}

// The most rows of y that are equal, by 64 bits of them; of many rows, a share of the different ones is looked at.
template <typename T> std::int64_t most_copies(const KdeSums& call) {
  constexpr std::uint64_t most = 1 << 21;
  const T* y = static_cast<const T*>(call.y);
  std::vector<std::uint64_t> keys(static_cast<std::size_t>(call.m));
  parallel_for(call.m, 1 + 8192 / call.d, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t j = begin; j < end; ++j) keys[static_cast<std::size_t>(j)] = row_key(y + j * call.d, call.d);
  });
  const std::uint64_t every = 1 + keys.size() / most;
  std::uint64_t places = 64;
  while (places < 2 * (keys.size() / every)) places *= 2;
  struct Place {
    std::uint64_t key = 0;
    std::int64_t count = 0;
  };
  std::vector<Place> table(places);
  std::int64_t copies = 0;
  std::uint64_t room = places - places / 4;
  for (std::uint64_t key : keys) {
    if (key % every) continue;
    std::uint64_t at = (key >> 20) & (places - 1);
    while (table[at].key && table[at].key != key) at = (at + 1) & (places - 1);
    if (!table[at].key) {
      if (!room) continue;
      --room, table[at].key = key;
    }
    copies = std::max(copies, ++table[at].count);
  }
  return std::max<std::int64_t>(copies, 1);
}

}  // namespace fokker::cpu
