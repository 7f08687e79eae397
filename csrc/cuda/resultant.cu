// Weighted column sums of a matrix in double, with the sum of weights and max | |x_i|^2 - 1 |: what a fit reads its
// data for.
//
// Two stages: block b sums rows [b R, (b+1) R) into partial[b], then the partial rows are added in order. The same bits
// for the same partial_rows; each x is read once, twice where a row exceeds what one block keeps in registers (d >
// 4096).
#include "cuda/kernels.h"
#include "cuda/reduce.cuh"

namespace fokker::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

struct Rows {
  std::int64_t begin, end;
};
__device__ __forceinline__ Rows rows_of(std::int64_t n, unsigned block, unsigned blocks) {
  const std::int64_t each = (n + blocks - 1) / blocks, begin = each * block;
  return {begin < n ? begin : n, begin + each < n ? begin + each : n};
}
__device__ __forceinline__ double off_unit(double square) { return math::abs(square - 1.0); }

// d <= kLanes kColumns: a team of kLanes threads takes a row, kBatch of them at a time to keep loads in flight.
template <typename T, int kLanes, int kColumns, int kBatch> __global__ void __launch_bounds__(kThreads)
    resultant_teams(const T* __restrict__ x, const T* __restrict__ weights, std::int64_t n, int d,
                    double* __restrict__ partial) {
  constexpr int kTeams = kThreads / kLanes;
  FK_SHARED(double, total, kLanes* kColumns);
  const int lane = threadIdx.x % kLanes, team = threadIdx.x / kLanes, warp = threadIdx.x / kWarp;
  const Rows rows = rows_of(n, blockIdx.x, gridDim.x);
  double sum[kColumns] = {}, weight = 0, worst = 0;
  for (std::int64_t base = rows.begin; base < rows.end; base += kTeams * kBatch) {  // the same trips in all threads
    T t[kBatch][kColumns];
    double w[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const std::int64_t i = base + b * kTeams + team;
      const bool valid = i < rows.end;
      w[b] = !valid ? 0.0 : weights ? double(weights[i]) : 1.0;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) t[b][c] = valid && lane + c * kLanes < d ? x[i * d + lane + c * kLanes] : T(0);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      double square = 0;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const double v = double(t[b][c]);
        sum[c] = math::mad(w[b], v, sum[c]);
        square = math::mad(v, v, square);
      }
      square = warp_reduce<kLanes>(square, Sum{});
      weight += w[b];
      if (base + b * kTeams + team < rows.end) worst = Max{}(worst, off_unit(square));
    }
  }
#pragma unroll
  for (int flip = kWarp / 2; flip >= kLanes; flip /= 2) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) sum[c] += shuffle_xor(sum[c], flip);
  }
  for (int turn = 0; turn < kWarps; ++turn) {  // warps add up in order, without a copy of the sums for each
    if (turn == warp && threadIdx.x % kWarp < kLanes)
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
        total[lane + c * kLanes] = turn == 0 ? sum[c] : total[lane + c * kLanes] + sum[c];
    __syncthreads();
  }
  double* row = partial + std::int64_t(blockIdx.x) * (d + 2);
  for (int c = threadIdx.x; c < d; c += kThreads) row[c] = total[c];
  weight = block_reduce<kThreads>(lane == 0 ? weight : 0.0, Sum{});
  worst = block_reduce<kThreads>(worst, Max{});
  if (threadIdx.x == 0) {
    row[d] = weight;
    row[d + 1] = worst;
  }
}

// A block takes kBatch whole rows at a time, or with blockIdx.y > 0 in the grid a tile of their columns (kNorms =
// false).
constexpr int kBatch = 8;
template <typename T, int kColumns, bool kNorms> __global__ void __launch_bounds__(kThreads)
    resultant_blocks(const T* __restrict__ x, const T* __restrict__ weights, std::int64_t n, std::int64_t d,
                     double* __restrict__ partial) {
  FK_SHARED(double, squares, 2 * kWarps * kBatch);  // two buffers: one barrier a batch is enough
  const Rows rows = rows_of(n, blockIdx.x, gridDim.x);
  const std::int64_t first = std::int64_t(blockIdx.y) * kThreads * kColumns + threadIdx.x;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  double sum[kColumns] = {}, weight = 0, worst = 0;
  int buffer = 0;
  for (std::int64_t base = rows.begin; base < rows.end; base += kBatch, buffer ^= 1) {
    double square[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const bool valid = base + b < rows.end;
      const double w = !valid ? 0.0 : weights ? double(weights[base + b]) : 1.0;
      const T* row = x + (base + b) * d;
      square[b] = 0;
      weight += w;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const std::int64_t column = first + c * kThreads;
        const double v = valid && column < d ? double(row[column]) : 0.0;
        sum[c] = math::mad(w, v, sum[c]);
        if constexpr (kNorms) square[b] = math::mad(v, v, square[b]);
      }
    }
    if constexpr (kNorms) {
      // Halves the number of rows a lane holds with each exchange: 9 shuffles for 8 sums over 32 lanes.
      int held = 0;
#pragma unroll
      for (int half = kBatch / 2, flip = 16; half > 0; half /= 2, flip /= 2) {
        const bool upper = lane & flip;
#pragma unroll
        for (int b = 0; b < half; ++b) {
          const double mine = upper ? square[b + half] : square[b], theirs = upper ? square[b] : square[b + half];
          square[b] = mine + shuffle_xor(theirs, flip);
        }
        held += upper ? half : 0;
      }
      square[0] = warp_reduce<kWarp / kBatch>(square[0], Sum{});
      double* mine = squares + buffer * kWarps * kBatch;
      if (lane % (kWarp / kBatch) == 0) mine[warp * kBatch + held] = square[0];
      __syncthreads();
      if (threadIdx.x < kBatch && base + threadIdx.x < rows.end) {
        double whole = 0;
        for (int k = 0; k < kWarps; ++k) whole += mine[k * kBatch + threadIdx.x];
        worst = Max{}(worst, off_unit(whole));
      }
    }
  }
  double* row = partial + std::int64_t(blockIdx.x) * (d + 2);
#pragma unroll
  for (int c = 0; c < kColumns; ++c)
    if (first + c * kThreads < d) row[first + c * kThreads] = sum[c];
  if (blockIdx.y == 0 && threadIdx.x == 0) row[d] = weight;
  if constexpr (kNorms) {
    if (warp == 0) worst = warp_reduce(worst, Max{});
    if (threadIdx.x == 0) row[d + 1] = worst;
  }
}

template <typename T> __global__ void __launch_bounds__(kThreads)
    resultant_norms(const T* __restrict__ x, std::int64_t n, std::int64_t d, double* __restrict__ partial) {
  const Rows rows = rows_of(n, blockIdx.x, gridDim.x);
  double worst = 0;
  for (std::int64_t i = rows.begin; i < rows.end; ++i) {
    double square = 0;
    for (std::int64_t j = threadIdx.x; j < d; j += kThreads) {
      const double v = double(x[i * d + j]);
      square = math::mad(v, v, square);
    }
    worst = Max{}(worst, off_unit(block_reduce<kThreads>(square, Sum{})));
  }
  if (threadIdx.x == 0) partial[std::int64_t(blockIdx.x) * (d + 2) + d + 1] = worst;
}

constexpr int kFinishRows = 8;
__global__ void __launch_bounds__(kWarp* kFinishRows)
    resultant_finish(const double* __restrict__ partial, int rows, std::int64_t d, double* __restrict__ out) {
  FK_SHARED(double, part, kWarp* kFinishRows);
  const std::int64_t column = std::int64_t(blockIdx.x) * kWarp + threadIdx.x;
  const bool is_max = column == d + 1;
  double v = 0;
  if (column < d + 2)
    for (int r = threadIdx.y; r < rows; r += kFinishRows) {
      const double p = partial[r * (d + 2) + column];
      v = is_max ? Max{}(v, p) : v + p;
    }
  part[threadIdx.y * kWarp + threadIdx.x] = v;
  __syncthreads();
  if (threadIdx.y != 0 || column >= d + 2) return;
  for (int r = 1; r < kFinishRows; ++r) {
    const double p = part[r * kWarp + threadIdx.x];
    v = is_max ? Max{}(v, p) : v + p;
  }
  out[column] = v;
}

}  // namespace

template <typename T> void resultant(const T* x, const T* weights, std::int64_t n, std::int64_t d, double* partial,
                                     int partial_rows, double* out, cudaStream_t stream) {
  const dim3 grid(partial_rows);
#define FK_TEAMS(lanes, columns, batch) \
  FK_LAUNCH((resultant_teams<T, lanes, columns, batch>), grid, kThreads, 0, stream, x, weights, n, int(d), partial)
#define FK_BLOCKS(columns, norms) \
  FK_LAUNCH((resultant_blocks<T, columns, norms>), grid, kThreads, 0, stream, x, weights, n, d, partial)
  if (d <= 4) FK_TEAMS(4, 1, 8);
  else if (d <= 16) FK_TEAMS(16, 1, 8);
  else if (d <= 32) FK_TEAMS(32, 1, 8);
  else if (d <= 128) FK_TEAMS(32, 4, 4);
  else if (d <= 512) FK_TEAMS(32, 16, 1);
  else if (d <= 1024) FK_BLOCKS(4, true);
  else if (d <= 2048) FK_BLOCKS(8, true);
  else if (d <= 4096) FK_BLOCKS(16, true);
  else {
    const dim3 tiles(partial_rows, blocks_for(d, kThreads * 4));
    FK_LAUNCH((resultant_blocks<T, 4, false>), tiles, kThreads, 0, stream, x, weights, n, d, partial);
    check_launch("resultant");
    FK_LAUNCH((resultant_norms<T>), grid, kThreads, 0, stream, x, n, d, partial);
  }
#undef FK_TEAMS
#undef FK_BLOCKS
  check_launch("resultant");
  FK_LAUNCH((resultant_finish), blocks_for(d + 2, kWarp), dim3(kWarp, kFinishRows), 0, stream, partial, partial_rows, d,
            out);
  check_launch("resultant");
}

template void resultant<float>(const float*, const float*, std::int64_t, std::int64_t, double*, int, double*,
                               cudaStream_t);
template void resultant<double>(const double*, const double*, std::int64_t, std::int64_t, double*, int, double*,
                                cudaStream_t);

}  // namespace fokker::cuda
