// Norm and rotary embedding of attention heads: y = n cos + R(n) sin, n = norm(x) w + b; a team of lanes a row.
//
// Bytes: queries, keys (and copied values) once in, once out; tables and weights stay in the caches.
#include "cuda/heads.cuh"

namespace fokker::cuda {
namespace {

template <typename T, typename S, int kUnits, bool kPacked> __global__ void __launch_bounds__(kHeadThreads, 1)
    heads_kernel(const __grid_constant__ HeadsPlan p, const __grid_constant__ HeadWalk w, std::int64_t rows,
                 int heads) {
  const int lane = threadIdx.x & (w.lanes - 1);
  const std::int64_t row = (std::int64_t(blockIdx.x) * kHeadThreads + threadIdx.x) / w.lanes;
  const bool there = row < rows;
  const std::int64_t token_row = there ? row / heads : 0;
  int h = there ? static_cast<int>(row - token_row * heads) : 0, which = 0;
  while (which + 1 < p.parts && h >= p.part[which].heads) h -= static_cast<int>(p.part[which++].heads);
  const HeadPart& part = p.part[which];
  const std::int64_t b = token_row / p.tokens, t = token_row - b * p.tokens;
  const std::int64_t from = place_of(part.x, b, h, t), to = place_of(part.out, b, h, t);
  HeadRow<T, kUnits> r;
#pragma unroll
  for (int k = 0; k < kUnits; ++k)
    r.x[k] = there ? read_unit<T, S, kPacked>(p, part.x, from, lane + k * w.lanes) : Unit<T>{};
  // Teams of one warp may have rows of different parts: those of values go along, and keep what they read.
  if (p.parts < kMaxParts || __any_sync(kFullWarp, !part.plain)) {
    HeadRow<T, kUnits> n = r;
    n.normalize(p, lane, w.lanes);
#pragma unroll
    for (int k = 0; k < kUnits; ++k) {
      const int u = lane + k * w.lanes;
      const Unit<T> weight = read_vector<T>(p, part.weight, u, T(1)), bias = read_vector<T>(p, part.bias, u, T(0));
      Unit<T> m, y;
#pragma unroll
      for (int e = 0; e < 4; ++e) m.v[e] = math::mad(n.x[k].v[e], weight.v[e], bias.v[e]);
      y = m;
      if (p.cos) {
        Unit<T> cos, sin;
        read_angles(p, b, t, u, cos, sin);
#pragma unroll
        for (int e = 0; e < 4; ++e)
          y.v[e] = math::mad(m.v[e], cos.v[e], (p.interleaved ? m.v[e ^ 1] : m.v[e ^ 2]) * sin.v[e]);
      }
      if (!part.plain) r.x[k] = y;
    }
  }
  if (!there) return;
#pragma unroll
  for (int k = 0; k < kUnits; ++k) write_unit<S, kPacked>(p, part.out, to, lane + k * w.lanes, r.x[k]);
}

}  // namespace

void heads(const HeadsPlan& p, cudaStream_t stream) {
  if (p.backward) return heads_vjp(p, stream);
  const HeadWalk w = head_walk(p);
  std::int64_t heads = 0;
  for (int i = 0; i < p.parts; ++i) heads += p.part[i].heads;
  const std::int64_t rows = p.batch * p.tokens * heads;
  dispatch_heads(p, w, [&](auto t, auto s, auto units, auto packed) {
    FK_LAUNCH((heads_kernel<decltype(t), decltype(s), decltype(units)::value, decltype(packed)::value>),
              blocks_for(rows, kHeadThreads / w.lanes), kHeadThreads, 0, stream, p, w, rows, static_cast<int>(heads));
  });
  check_launch("heads_norm_rope");
}

}  // namespace fokker::cuda
