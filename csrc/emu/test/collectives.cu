// Known answers for every collective, atomic and error of the emulator; usage: collectives <order> [seed] [fault].
// Prints one line a check and ends with 1 if any failed. With a fault (race, overrun, uninitialised) it runs one wrong
// kernel instead, which the sanitizers or the poison must show. tests/test_emulator.py compiles and runs it.
#include <cstdio>
#include <limits>
#include <vector>

#include "cuda/launch.h"

namespace {

using fokker::cuda::kFullWarp;
int failures = 0;

void check(bool good, const char* what, const std::string& seen = "") {
  std::printf("%s %s%s%s\n", good ? "ok  " : "FAIL", what, seen.empty() ? "" : ": ", seen.c_str());
  failures += !good;
}
std::string launch_error() {
  const cudaError_t e = cudaGetLastError();
  return e == cudaSuccess ? "" : cudaGetErrorString(e);
}
void expect_error(const char* what, const char* part) {
  const std::string seen = launch_error();
  check(seen.find(part) != std::string::npos, what, seen.empty() ? "no error" : seen);
}

__global__ void shuffles(int* out) {  // 8 results a lane
  const int lane = threadIdx.x & 31;
  int* o = out + threadIdx.x * 8;
  o[0] = __shfl_sync(kFullWarp, lane * 10, 5);
  o[1] = __shfl_xor_sync(kFullWarp, lane, 3);
  o[2] = __shfl_down_sync(kFullWarp, lane, 4);
  o[3] = __shfl_up_sync(kFullWarp, lane, 4);
  o[4] = __shfl_sync(kFullWarp, lane, 1, 8);
  o[5] = __shfl_down_sync(kFullWarp, lane, 3, 8);
  o[6] = __shfl_up_sync(kFullWarp, lane, 3, 8);
  o[7] = int(__shfl_xor_sync(kFullWarp, double(lane) + 0.5, 16) * 2);
}
__global__ void votes(unsigned* out) {
  const unsigned lane = threadIdx.x & 31;
  unsigned* o = out + threadIdx.x * 8;
  o[0] = __ballot_sync(kFullWarp, lane % 3 == 0);
  o[1] = unsigned(__any_sync(kFullWarp, lane == 31));
  o[2] = unsigned(__all_sync(kFullWarp, lane < 31));
  o[3] = __reduce_add_sync(kFullWarp, lane);
  o[4] = __reduce_max_sync(kFullWarp, lane ^ 5u);
  o[5] = unsigned(__reduce_min_sync(kFullWarp, int(lane) - 7));
  o[6] = __match_any_sync(kFullWarp, lane / 4);
  o[7] = __reduce_xor_sync(kFullWarp, 1u << lane);
}
// Half a warp meets under its own mask while the other half waits for all 32 lanes.
__global__ void nested_masks(int* out) {
  const int lane = threadIdx.x;
  int v = lane;
  if (lane < 16) v = __shfl_xor_sync(0xffffu, v, 15);
  out[lane] = v + 100 * __shfl_sync(kFullWarp, v, 0);
}
__global__ void block_sum(const int* in, int* out, int n) {
  FK_SHARED(int, partial, 32);
  int sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += in[i];
  for (int o = 16; o; o >>= 1) sum += __shfl_down_sync(kFullWarp, sum, o);
  if ((threadIdx.x & 31) == 0) partial[threadIdx.x >> 5] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned w = 1; w < blockDim.x / 32; ++w) sum += partial[w];
    atomicAdd(out, sum);
  }
}
__global__ void transpose(const int* in, int* out) {  // 2-D block, dynamic shared memory
  FK_DYNAMIC_SMEM(int, tile);
  tile[threadIdx.y * blockDim.x + threadIdx.x] = in[threadIdx.y * blockDim.x + threadIdx.x];
  __syncthreads();
  out[threadIdx.x * blockDim.y + threadIdx.y] = tile[threadIdx.y * blockDim.x + threadIdx.x];
}
__global__ void poison(float* out) {
  FK_SHARED(float, fixed, 4);
  FK_DYNAMIC_SMEM(float, dynamic);
  out[2 * blockIdx.x] = fixed[1];
  out[2 * blockIdx.x + 1] = dynamic[1];
  fixed[1] = dynamic[1] = 1.0f;  // the next block must not see it
}
__global__ void barrier_votes(int* out) {
  const int i = threadIdx.x;
  const int odd = __syncthreads_count(i & 1), all = __syncthreads_and(i < 1000), any = __syncthreads_or(i == 7);
  out[i] = odd * 100 + all * 10 + any;
}
__global__ void early_exit(int* out) {  // threads that left count as arrived
  if (threadIdx.x >= 40) return;
  __syncthreads();
  out[threadIdx.x] = __popc(__ballot_sync(threadIdx.x < 32 ? kFullWarp : 0xffu, 1));
}
__global__ void partial_warp(int* out) {
  out[threadIdx.x] = __popc(__ballot_sync(kFullWarp, 1));  // 7 lanes exist
}
__global__ void atomics(int* i, float* f, unsigned long long* u) {
  atomicAdd(i, 1);
  atomicMax(i + 1, int(threadIdx.x));
  atomicMin(i + 2, -int(threadIdx.x));
  atomicAdd(f, 0.5f);
  atomicAdd(u, 3ull);
  atomicCAS(i + 3, 0, int(threadIdx.x) + 1);
}
__global__ void block_order(int* out) { out[blockIdx.x] = atomicAdd(out + gridDim.x, 1); }

__global__ void two_barriers() {
  if (threadIdx.x & 1) __syncthreads();
  else __syncthreads();
}
__global__ void barrier_against_warp() {
  if (threadIdx.x == 0) __syncthreads();
  else __syncwarp();
}
__global__ void wrong_mask() {
  if (threadIdx.x < 16) __ballot_sync(0xffffu | 1u << 16, 1);
  else __ballot_sync(kFullWarp, 1);
}
__global__ void not_in_mask() { __ballot_sync(0xfeu, 1); }
__global__ void mixed_kinds() {
  if (threadIdx.x & 1) __ballot_sync(kFullWarp, 1);
  else __shfl_sync(kFullWarp, 1, 0);
}
__global__ void too_much_shared(char* out) {
  FK_SHARED(char, big, 49 * 1024);
  out[threadIdx.x] = big[threadIdx.x];
}
__global__ void from_outside(unsigned* out) {  // lane 1 is not in the mask: its value is undefined, here poison
  if (threadIdx.x != 1) out[threadIdx.x] = __shfl_sync(~2u, threadIdx.x, 1);
}

// Reads what another warp wrote, without a barrier.
__global__ void race(int* out) {
  FK_SHARED(int, cell, 64);
  cell[threadIdx.x] = int(threadIdx.x);
  out[threadIdx.x] = cell[threadIdx.x ^ 32];
}
__global__ void overrun(int* out) {
  FK_SHARED(int, cell, 32);
  cell[threadIdx.x + 1] = int(threadIdx.x);
  out[threadIdx.x] = cell[threadIdx.x];
}
// A sum over shared memory that nobody has set.
__global__ void uninitialised(float* out) {
  FK_SHARED(float, cell, 32);
  if (threadIdx.x > 0) cell[threadIdx.x] = 1.0f;
  __syncwarp();
  float sum = cell[threadIdx.x];
  for (int flip = 16; flip; flip >>= 1) sum += __shfl_xor_sync(kFullWarp, sum, flip);
  out[threadIdx.x] = sum;
}

int run_fault(const std::string& fault) {
  int sink[64];
  float sums[32];
  if (fault == "race") FK_LAUNCH((race), 1, 64, 0, nullptr, sink);
  else if (fault == "overrun") FK_LAUNCH((overrun), 1, 32, 0, nullptr, sink);
  else {
    FK_LAUNCH((uninitialised), 1, 32, 0, nullptr, sums);
    std::printf("sum %g\n", double(sums[3]));
  }
  return 0;
}

template <typename F> bool every(int n, F&& f) {
  for (int i = 0; i < n; ++i)
    if (!f(i)) return false;
  return true;
}

void collectives() {
  std::vector<int> s(64 * 8);
  FK_LAUNCH((shuffles), 1, 64, 0, nullptr, s.data());
  check(every(64,
              [&](int t) {
                const int l = t & 31, g = l & ~7,
                          want[8] = {50,
                                     l ^ 3,
                                     l < 28 ? l + 4 : l,
                                     l >= 4 ? l - 4 : l,
                                     g + 1,
                                     (l & 7) < 5 ? l + 3 : l,
                                     (l & 7) >= 3 ? l - 3 : l,
                                     2 * (l ^ 16) + 1};
                return every(8, [&](int k) { return s[t * 8 + k] == want[k]; });
              }),
        "shuffles");
  std::vector<unsigned> v(96 * 8);
  FK_LAUNCH((votes), 1, 96, 0, nullptr, v.data());
  check(every(96,
              [&](int t) {
                const unsigned l = t & 31,
                               want[8] = {0x49249249u, 1, 0, 496, 31, unsigned(-7), 0xfu << (l & ~3u), kFullWarp};
                return every(8, [&](int k) { return v[t * 8 + k] == want[k]; });
              }),
        "votes, reductions and matches");
  std::vector<int> m(32);
  FK_LAUNCH((nested_masks), 1, 32, 0, nullptr, m.data());
  check(every(32, [&](int l) { return m[l] == (l < 16 ? 15 - l : l) + 1500; }), "nested masks");
  std::vector<int> in(1000), out(1, 0);
  for (int i = 0; i < 1000; ++i) in[i] = i;
  FK_LAUNCH((block_sum), 3, 128, 0, nullptr, in.data(), out.data(), 1000);
  check(out[0] == 499500, "block sum");
  std::vector<int> tr(8 * 24);
  FK_LAUNCH((transpose), 1, dim3(24, 8), 24 * 8 * sizeof(int), nullptr, in.data(), tr.data());
  check(every(24 * 8, [&](int i) { return tr[i] == in[i % 8 * 24 + i / 8]; }), "two-dimensional block");
  std::vector<float> p(8);
  FK_LAUNCH((poison), 4, 1, 16, nullptr, p.data());
  check(every(8, [&](int i) { return p[i] != p[i]; }), "shared memory starts poisoned in every block");
  std::vector<int> b(100);
  FK_LAUNCH((barrier_votes), 1, 100, 0, nullptr, b.data());
  check(every(100, [&](int i) { return b[i] == 50 * 100 + 10 + 1; }), "barrier votes");
  std::vector<int> e(40);
  FK_LAUNCH((early_exit), 1, 64, 0, nullptr, e.data());
  check(every(40, [&](int i) { return e[i] == (i < 32 ? 32 : 8); }), "threads that left do not hold up the rest");
  std::vector<int> w(7);
  FK_LAUNCH((partial_warp), 1, 7, 0, nullptr, w.data());
  check(every(7, [&](int i) { return w[i] == 7; }), "partial warp");
  int ai[4] = {0, 0, 0, 0};
  float af = 0;
  unsigned long long au = 0;
  FK_LAUNCH((atomics), 2, 100, 0, nullptr, ai, &af, &au);
  check(ai[0] == 200 && ai[1] == 99 && ai[2] == -99 && ai[3] >= 1 && ai[3] <= 100 && af == 100 && au == 600, "atomics");
  std::vector<unsigned> outside(32, 0);
  FK_LAUNCH((from_outside), 1, 32, 0, nullptr, outside.data());
  check(outside[0] == 0xffffffffu && outside[31] == 0xffffffffu, "a value from outside the mask is poison");
  check(launch_error().empty(), "no launch failed");
}

void order_of_blocks(const std::string& order) {
  std::vector<int> o(9, 0);
  FK_LAUNCH((block_order), 8, 1, 0, nullptr, o.data());
  const bool forward = every(8, [&](int i) { return o[i] == i; }),
             reverse = every(8, [&](int i) { return o[i] == 7 - i; });
  check(order == "forward"   ? forward
        : order == "reverse" ? reverse
                             : !forward && !reverse,
        "blocks run in the order asked");
}

struct alignas(16) Four {
  float v[4];
};
__global__ void copy_pack(const float* in, float* out) {
  fokker::cuda::store_pack(out, fokker::cuda::load_pack<Four>(in));
}
__global__ void both_shared(char* out) {
  FK_SHARED(char, fixed, 40 * 1024);
  FK_DYNAMIC_SMEM(char, dynamic);
  fixed[threadIdx.x] = dynamic[threadIdx.x] = 1;
  out[threadIdx.x] = fixed[threadIdx.x] + dynamic[threadIdx.x];
}

void errors() {
  FK_LAUNCH((barrier_against_warp), 1, 32, 0, nullptr);
  expect_error("a barrier against a warp collective", "deadlock");
  FK_LAUNCH((two_barriers), 1, 32, 0, nullptr);
  expect_error("two barriers", "two barriers");
  FK_LAUNCH((wrong_mask), 1, 32, 0, nullptr);
  expect_error("masks that disagree", "disagree on the mask");
  FK_LAUNCH((not_in_mask), 1, 1, 0, nullptr);
  expect_error("a lane outside its mask", "not in the mask");
  FK_LAUNCH((mixed_kinds), 1, 32, 0, nullptr);
  expect_error("two collectives under one mask", "other lanes of the mask are at");
  char sink[32];
  FK_LAUNCH((too_much_shared), 1, 32, 0, nullptr, sink);
  expect_error("static shared memory above its limit", "shared memory beyond");
  FK_LAUNCH((block_order), 1, 2048, 0, nullptr, nullptr);
  expect_error("a block of 2048 threads", "invalid configuration");
  FK_LAUNCH((block_order), dim3(1, 70000), 32, 0, nullptr, nullptr);
  expect_error("a grid 70000 high", "invalid configuration");
  FK_LAUNCH((block_order), 1, 32, 300 * 1024, nullptr, nullptr);
  expect_error("300 KiB of dynamic shared memory", "invalid configuration");
  const auto allow = [](auto* kernel, int bytes) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) == cudaSuccess;
  };
  int counts[2] = {0, 0};
  FK_LAUNCH((block_order), 1, 1, 100 * 1024, nullptr, counts);
  expect_error("100 KiB of dynamic shared memory that nobody asked for", "invalid configuration");
  check(allow(block_order, 64 * 1024), "64 KiB may be asked for");
  FK_LAUNCH((block_order), 1, 1, 100 * 1024, nullptr, counts);
  expect_error("more dynamic shared memory than asked for", "invalid configuration");
  check(allow(block_order, 100 * 1024), "100 KiB may be asked for");
  FK_LAUNCH((block_order), 1, 1, 100 * 1024, nullptr, counts);
  check(launch_error().empty() && counts[1] == 1, "dynamic shared memory that was asked for");
  check(!allow(block_order, 300 * 1024), "300 KiB may not be asked for");
  expect_error("asking for 300 KiB", "invalid argument");
  allow(block_order, 0);
  FK_LAUNCH((both_shared), 1, 32, 16 * 1024, nullptr, sink);
  expect_error("static and dynamic shared memory above what every block has", "shared memory beyond");
  allow(both_shared, 16 * 1024);
  FK_LAUNCH((both_shared), 1, 32, 16 * 1024, nullptr, sink);
  check(launch_error().empty() && sink[31] == 2, "both kinds of shared memory, asked for");
  allow(both_shared, 0);
  alignas(16) float packs[12] = {};
  FK_LAUNCH((copy_pack), 1, 1, 0, nullptr, packs, packs + 4);
  check(launch_error().empty(), "an aligned pack");
  FK_LAUNCH((copy_pack), 1, 1, 0, nullptr, packs + 1, packs + 4);
  expect_error("a misaligned load", "misaligned address");
  FK_LAUNCH((copy_pack), 1, 1, 0, nullptr, packs, packs + 6);
  expect_error("a misaligned store", "misaligned address");
}

}  // namespace

int main(int argc, char** argv) {
  const std::string order = argc > 1 ? argv[1] : "forward";
  if (!fokker::emu::set_order(order, argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0)) return 2;
  if (argc > 3) return run_fault(argv[3]);
  for (int round = 0; round < 2; ++round) {  // an emulator that failed must go on working
    collectives();
    order_of_blocks(order);
    errors();
  }
  try {
    FK_LAUNCH((not_in_mask), 1, 1, 0, nullptr);
    fokker::cuda::check_launch("name of the op");
    check(false, "check_launch throws");
  } catch (const fokker::CudaError& e) {
    check(std::string(e.what()).rfind("name of the op: ", 0) == 0, "check_launch throws", e.what());
  }
  return failures != 0;
}
