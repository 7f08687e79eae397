// Philox words and normals: known answers, a hash of many normals, and raw dumps.
//
//   noise philox c0 c1 c2 c3 key0 key1                 hexadecimal words in, four words out
//   noise block seed step stream sample block          words, float normals and double normals of one block, in bits
//   noise hash seed step stream sample blocks          FNV-1a hashes: words, floats, doubles; block by block and in
//   rows noise dump float|double|words|uniform_float|uniform_double seed step stream sample first blocks     raw rows
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "math/noise_fill.h"

namespace math = fokker::math;

static uint64_t fnv(const void* data, size_t bytes) {
  uint64_t hash = 0xcbf29ce484222325ull;
  const auto* p = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < bytes; ++i) hash = (hash ^ p[i]) * 0x100000001b3ull;
  return hash;
}

int main(int argc, char** argv) {
  if (argc < 7) return 2;
  const auto number = [&](int i, int base) { return std::strtoull(argv[i], nullptr, base); };
  if (!std::strcmp(argv[1], "philox")) {
    if (argc != 8) return 2;
    uint32_t v[6];
    for (int i = 0; i < 6; ++i) v[i] = static_cast<uint32_t>(number(i + 2, 16));
    const auto w = math::philox({v[0], v[1], v[2], v[3]}, v[4], v[5]);
    std::printf("%08x %08x %08x %08x\n", w.w0, w.w1, w.w2, w.w3);
    return 0;
  }
  const bool dump = !std::strcmp(argv[1], "dump");
  const int at = dump ? 3 : 2;
  if (argc < at + 5 + dump) return 2;
  const uint64_t seed = number(at, 0), sample = number(at + 3, 0);
  const auto step = static_cast<uint32_t>(number(at + 1, 0));
  const auto stream = static_cast<math::Stream>(number(at + 2, 0));
  const auto first = static_cast<uint32_t>(number(at + 4, 0));
  if (!std::strcmp(argv[1], "block")) {
    const auto w = math::noise(seed, step, stream, sample, first);
    const auto z = math::normal_block(w);
    const auto d = math::normal_pair(w);
    std::printf("%08x %08x %08x %08x\n", w.w0, w.w1, w.w2, w.w3);
    const float f[] = {z.z0, z.z1, z.z2, z.z3};
    for (float value : f) std::printf("%08x ", math::bit_cast<uint32_t>(value));
    std::printf("\n%016llx %016llx\n", static_cast<unsigned long long>(math::bit_cast<uint64_t>(d.first)),
                static_cast<unsigned long long>(math::bit_cast<uint64_t>(d.second)));
    return 0;
  }
  const auto n = dump ? static_cast<int64_t>(number(at + 5, 0)) : static_cast<int64_t>(first);
  const uint32_t start = dump ? first : 0;
  std::vector<float> floats(4 * n), floats_by_block(4 * n);
  std::vector<double> doubles(2 * n), doubles_by_block(2 * n);
  std::vector<uint32_t> words(4 * n), radius(2 * n), angle(2 * n), words_by_block(4 * n);
  math::fill_normals(seed, step, stream, sample, start, n, floats.data());
  math::fill_normals(seed, step, stream, sample, start, n, doubles.data());
  math::noise_pairs(seed, step, stream, sample, start, n, radius.data(), angle.data());
  for (int64_t i = 0; i < 2 * n; ++i) words[2 * i] = radius[i], words[2 * i + 1] = angle[i];
  if (dump) {
    if (!std::strcmp(argv[2], "float")) std::fwrite(floats.data(), 4, floats.size(), stdout);
    else if (!std::strcmp(argv[2], "double")) std::fwrite(doubles.data(), 8, doubles.size(), stdout);
    else if (!std::strcmp(argv[2], "words")) std::fwrite(words.data(), 4, words.size(), stdout);
    else if (!std::strcmp(argv[2], "uniform_float")) {
      for (size_t i = 0; i < words.size(); ++i) floats[i] = math::uniform(words[i]);
      std::fwrite(floats.data(), 4, floats.size(), stdout);
    } else {
      for (size_t i = 0; i < doubles.size(); ++i) doubles[i] = math::uniform(words[2 * i], words[2 * i + 1]);
      std::fwrite(doubles.data(), 8, doubles.size(), stdout);
    }
    return 0;
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const auto w = math::noise(seed, step, stream, sample, static_cast<uint32_t>(i));
    const auto z = math::normal_block(w);
    const auto d = math::normal_pair(w);
    words_by_block[4 * i] = w.w0, words_by_block[4 * i + 1] = w.w1;
    words_by_block[4 * i + 2] = w.w2, words_by_block[4 * i + 3] = w.w3;
    floats_by_block[4 * i] = z.z0, floats_by_block[4 * i + 1] = z.z1;
    floats_by_block[4 * i + 2] = z.z2, floats_by_block[4 * i + 3] = z.z3;
    doubles_by_block[2 * i] = d.first, doubles_by_block[2 * i + 1] = d.second;
  }
  const auto print = [](const auto& v) {
    std::printf("%016llx ", static_cast<unsigned long long>(fnv(v.data(), v.size() * sizeof(v[0]))));
  };
  print(words_by_block), print(floats_by_block), print(doubles_by_block), std::printf("\n");
  print(words), print(floats), print(doubles), std::printf("\n");
}
