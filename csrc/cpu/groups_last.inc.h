// Group norms of channels_last samples: the channels of a position lie side by side. Included by groups.inc.h.
//
// A chunk of positions is summed channel by channel (a row of sums in the first cache), the sums of a group's channels
// and of a sample's chunks are put together in double, then the chunks are read again: from the second or third cache,
// since a wave of samples is small (cpu/groups.cpp); or a thread takes a sample through all of it.
#pragma once

#include <memory>

#include "cpu/groups_last_rows.inc.h"

namespace fokker::cpu::FK_ISA {
namespace {

// Mean and sum of squares about it of each group over the positions [from, to) of sample b, into `found` (groups, 2).
template <typename S>
inline void chunk_moments(LastRows<S>& rows, std::int64_t b, std::int64_t from, std::int64_t to, double* found) {
  using T = Computed<S>;
  const GroupPlan& p = rows.p;
  const std::int64_t channels = p.channels, per = p.per_group();
  const GroupMap& of = p.residual.data ? p.sum : p.x;
  const std::int64_t stride = of.row_stride;
  T *const pivot = rows.row(0), *const first = rows.row(1), *const second = rows.row(2);
  double *const sum = rows.sums(0), *const square = rows.sums(1);
  std::fill(sum, sum + 2 * channels, 0.0);
  for (std::int64_t i = from; i < to; i += rows.block) {
    const std::int64_t n = std::min(rows.block, to - i);
    if (p.residual.data) {
      for (std::int64_t r = i; r < i + n; ++r)
        summed<S>(p, p.x.row(b, r), p.residual.row(b, r), p.sum.row(b, r), channels);
      if (p.std.data) continue;
    }
    const S* const x = at<S>(of, of.row(b, i));
    if (i == from) {
      const std::int64_t few = std::min(n, kPivotPositions);
      std::fill(pivot, pivot + channels, T(0));
      for (std::int64_t r = 0; r < few; ++r) {
        each_vector<T>(channels, [&](std::int64_t c, auto lanes) {
          lanes.store(pivot + c, Vec<T>(lanes.load(pivot + c) + lanes.load(x + r * stride + c)));
        });
      }
      const T share = T(1) / static_cast<T>(few);
#pragma omp simd
      for (std::int64_t c = 0; c < channels; ++c) pivot[c] *= share;
    }
    std::fill(first, first + channels, T(0));
    std::fill(second, second + channels, T(0));
    add_deviations(x, stride, n, pivot, first, second, channels);
    add_row(sum, first, channels);
    add_row(square, second, channels);
  }
  const double count = static_cast<double>(to - from);
  for (std::int64_t g = 0; g < p.groups; ++g) {
    double mean = 0, squares = 0;
    for (std::int64_t c = g * per; c < (g + 1) * per; ++c) {
      const double rest = sum[c] / count;
      squares += square[c] - rest * sum[c];
      mean += sum[c] = static_cast<double>(pivot[c]) + rest;
    }
    mean /= static_cast<double>(per);
    for (std::int64_t c = g * per; c < (g + 1) * per; ++c) squares += count * (sum[c] - mean) * (sum[c] - mean);
    found[2 * g] = mean, found[2 * g + 1] = squares;
  }
}

// The moments of chunks put together, and the coefficients of the sample's channels.
template <typename T> inline void merge_moments(const GroupPlan& p, const GroupChunks& s, std::int64_t b,
                                                const double* partial, const LastCoefficients<T>& to) {
  const std::int64_t per = p.per_group();
  for (std::int64_t g = 0; g < p.groups; ++g) {
    double mean = 0, squares = 0;
    const auto count = [&](std::int64_t k) {
      return static_cast<double>(std::min(s.positions, p.positions - k * s.positions) * per);
    };
    if (!p.std.data) {
      for (std::int64_t k = 0; k < s.chunks; ++k) mean += count(k) * partial[k * s.width + 2 * g];
      mean /= p.count();
      for (std::int64_t k = 0; k < s.chunks; ++k) {
        const double rest = partial[k * s.width + 2 * g] - mean;
        squares += partial[k * s.width + 2 * g + 1] + count(k) * rest * rest;
      }
    }
    const GroupStatistics found = settle(p, b, g, mean, squares);
    for (std::int64_t c = g * per; c < (g + 1) * per; ++c)
      to.set(c, math::group_channel<T>(p, b, c, found.mean, found.rstd));
  }
}

template <Activation A, bool kStreamed, typename S, typename T>
inline void normalise_chunk(const GroupPlan& p, std::int64_t b, std::int64_t from, std::int64_t to,
                            const LastCoefficients<T>& by) {
  const GroupMap& of = p.residual.data ? p.sum : p.x;
  for (std::int64_t i = from; i < to; ++i) {
    const S* const x = at<S>(of, of.row(b, i));
    S* const y = at<S>(p.out, p.out.row(b, i));
    each_vector<T, kStreamed>(p.channels, [&](std::int64_t c, auto lanes) {
      ask_ahead(x + c);
      const Vec<T> d = lanes.load(x + c) - lanes.load(by.mean + c);
      lanes.store(y + c, activated<A, T>(fma(d, lanes.load(by.factor + c), lanes.load(by.addend + c))));
    });
  }
}

// ---- backward ----
template <typename T>
inline void forward_coefficients(const GroupPlan& p, std::int64_t b, const LastCoefficients<T>& to) {
  const std::int64_t per = p.per_group();
  for (std::int64_t c = 0; c < p.channels; ++c) {
    const double* const at = p.stats + (b * p.groups + c / per) * 2;
    to.set(c, math::group_channel<T>(p, b, c, at[0], at[1]));
  }
}

// The sums of du and of du (x - mean) over the positions [from, to), into `found` (2, channels).
template <Activation A, typename S, typename T> inline void chunk_sums(LastRows<S>& rows, std::int64_t b,
                                                                       std::int64_t from, std::int64_t to,
                                                                       const LastCoefficients<T>& by, double* found) {
  const GroupPlan& p = rows.p;
  const std::int64_t stride = p.x.row_stride, grad_stride = p.grad.row_stride;
  T *const a = rows.row(1), *const e = rows.row(2);
  std::fill(found, found + 2 * p.channels, 0.0);
  for (std::int64_t i = from; i < to; i += rows.block) {
    const std::int64_t n = std::min(rows.block, to - i);
    const S *const x = at<S>(p.x, p.x.row(b, i)), *const grad = at<S>(p.grad, p.grad.row(b, i));
    std::fill(a, a + 2 * p.channels, T(0));
    std::int64_t r = 0;
    const auto step = [&](auto count) {
      each_vector<T>(p.channels, [&](std::int64_t c, auto lanes) {
        const Vec<T> mean = lanes.load(by.mean + c), factor = lanes.load(by.factor + c),
                     addend = lanes.load(by.addend + c);
        Vec<T> to_a = lanes.load(a + c), to_e = lanes.load(e + c);
#pragma GCC unroll 2
        for (std::int64_t k = 0; k < count(); ++k) {
          ask_ahead(x + (r + k) * stride + c);
          ask_ahead(grad + (r + k) * grad_stride + c);
          const Vec<T> d = lanes.load(x + (r + k) * stride + c) - mean;
          const Vec<T> g = through<A, T>(fma(d, factor, addend), lanes.load(grad + (r + k) * grad_stride + c));
          to_a += g;
          to_e = fma(g, d, to_e);
        }
        lanes.store(a + c, to_a);
        lanes.store(e + c, to_e);
      });
    };
    for (; r + 2 <= n; r += 2) step(std::integral_constant<std::int64_t, 2>{});
    for (; r < n; ++r) step(std::integral_constant<std::int64_t, 1>{});
    add_row(found, a, 2 * p.channels);
  }
}

template <typename T> inline void merge_sums(const GroupPlan& p, const GroupChunks& s, std::int64_t b,
                                             const double* partial, const LastCoefficients<T>& to) {
  const std::int64_t per = p.per_group();
  double* const sums = p.sums + b * p.channels * 2;
  for (std::int64_t g = 0; g < p.groups; ++g) {
    const double mean = p.stats[(b * p.groups + g) * 2], rstd = p.stats[(b * p.groups + g) * 2 + 1];
    double ka = 0, ke = 0;
    for (std::int64_t c = g * per; c < (g + 1) * per; ++c) {
      double a = 0, e = 0;
      for (std::int64_t k = 0; k < s.chunks; ++k)
        a += partial[k * s.width + c], e += partial[k * s.width + p.channels + c];
      const double gain = math::group_gain(p, b, c);
      sums[2 * c] = a, sums[2 * c + 1] = e = math::group_second<T>(p, mean, rstd, a, e);
      ka += gain * a, ke += gain * e;
    }
    const GroupSlope<T> slope = math::group_slope<T>(p, mean, rstd, ka, ke);
    for (std::int64_t c = g * per; c < (g + 1) * per; ++c)
      to.pivot[c] = slope.pivot, to.slope[c] = slope.slope, to.offset[c] = slope.offset;
  }
}

template <Activation A, bool kStreamed, typename S, typename T>
inline void differentiate_chunk(const GroupPlan& p, std::int64_t b, std::int64_t from, std::int64_t to,
                                const LastCoefficients<T>& by) {
  for (std::int64_t i = from; i < to; ++i) {
    const S *const x = at<S>(p.x, p.x.row(b, i)), *const grad = at<S>(p.grad, p.grad.row(b, i));
    const S* const above = p.grad_sum.data ? at<S>(p.grad_sum, p.grad_sum.row(b, i)) : nullptr;
    S* const out = at<S>(p.out, p.out.row(b, i));
    each_vector<T, kStreamed>(p.channels, [&](std::int64_t c, auto lanes) {
      ask_ahead(x + c);
      ask_ahead(grad + c);
      const Vec<T> v = lanes.load(x + c), factor = lanes.load(by.factor + c);
      const Vec<T> u = fma(Vec<T>(v - lanes.load(by.mean + c)), factor, lanes.load(by.addend + c));
      const Vec<T> du = through<A, T>(u, lanes.load(grad + c));
      const Vec<T> mean_part =
          fma(lanes.load(by.slope + c), Vec<T>(v - lanes.load(by.pivot + c)), lanes.load(by.offset + c));
      Vec<T> g = fma(factor, du, -mean_part);
      if (above) g += lanes.load(above + c);
      lanes.store(out + c, g);
    });
  }
}

template <Activation A, bool kStreamed, typename S>
void last(const GroupPlan& p, const GroupChunks& s, GroupPhase phase, std::int64_t begin, std::int64_t end) {
  using T = Computed<S>;
  const std::int64_t held = kGroupCoefficients * p.channels;
  LastRows<S> rows(p);
  const auto sum = [&](std::int64_t b, std::int64_t k, const LastCoefficients<T>& by, double* partial) {
    const std::int64_t from = k * s.positions, to = std::min(p.positions, from + s.positions);
    if (p.backward) chunk_sums<A>(rows, b, from, to, by, partial + k * s.width);
    else if (!p.std.data || p.residual.data) chunk_moments(rows, b, from, to, partial + k * s.width);
  };
  const auto merge = [&](std::int64_t b, const LastCoefficients<T>& by, const double* partial) {
    if (p.backward) merge_sums(p, s, b, partial, by);
    else merge_moments(p, s, b, partial, by);
  };
  const auto apply = [&](std::int64_t b, std::int64_t k, const LastCoefficients<T>& by) {
    const std::int64_t from = k * s.positions, to = std::min(p.positions, from + s.positions);
    if (p.backward) differentiate_chunk<A, kStreamed, S>(p, b, from, to, by);
    else normalise_chunk<A, kStreamed, S>(p, b, from, to, by);
  };
  if (phase == GroupPhase::all) {
    const std::unique_ptr<T[]> own(new T[static_cast<std::size_t>(held)]);
    const std::unique_ptr<double[]> partial(new double[static_cast<std::size_t>(s.chunks * s.width)]);
    const LastCoefficients<T> by(own.get(), p.channels);
    for (std::int64_t b = begin; b < end; ++b) {
      if (p.backward) forward_coefficients(p, b, by);
      for (std::int64_t k = 0; k < s.chunks; ++k) sum(b, k, by, partial.get());
      merge(b, by, partial.get());
      for (std::int64_t k = s.chunks; k-- > 0;) apply(b, k, by);  // the last ones are still in the second cache
    }
    return;
  }
  for (std::int64_t item = begin; item < end; ++item) {
    const bool samples = phase == GroupPhase::prepare || phase == GroupPhase::merge;
    const std::int64_t at = samples ? item : item / s.chunks, b = s.first + at, k = item % s.chunks;
    const LastCoefficients<T> by(static_cast<T*>(s.coefficients) + at * held, p.channels);
    double* const partial = s.partial + at * s.chunks * s.width;
    if (phase == GroupPhase::prepare) forward_coefficients(p, b, by);
    else if (phase == GroupPhase::sums) sum(b, k, by, partial);
    else if (phase == GroupPhase::merge) merge(b, by, partial);
    else apply(b, k, by);
  }
}

}  // namespace

void group_last(const GroupPlan& p, const GroupChunks& s, GroupPhase phase, std::int64_t begin, std::int64_t end) {
  with_numbers(p, [&](auto number) {
    using S = decltype(number);
    with_activation(p.activation, [&](auto a) {
      with_streams<S>(p, [&](auto streamed) { last<a(), streamed(), S>(p, s, phase, begin, end); });
    });
  });
}

}  // namespace fokker::cpu::FK_ISA
