// Body of group norms on the CPU, once per instruction set: groups whose channels hold their positions side by side.
//
//   forward   a group (channels / groups x positions) is read once into the second cache: its statistics, then its
//             results; 2 numbers an element move
//   backward  du into a scratch, with the sums A and E of each channel; then the gradient from it: 3 numbers move
#include "cpu/groups.h"

#include <algorithm>
#include <memory>

#include "cpu/groups_last.inc.h"
#include "cpu/norms_row.inc.h"

namespace fokker::cpu::FK_ISA {
namespace {

constexpr int kGroupTile = 4096;  // numbers that lie in the first cache between two passes over them

// Count, mean and sum of squares about the mean of what was added so far, by Chan's formula.
struct Moments {
  double n = 0, mean = 0, squares = 0;
  void add(double count, double its_mean, double its_squares) {
    const double total = n + count, delta = its_mean - mean;
    squares += its_squares + delta * delta * (n * count / total);
    mean += delta * (count / total);
    n = total;
  }
};

template <typename S> inline void add_tile(Moments& to, const S* x, std::int64_t n) {
  using T = Computed<S>;
  const double count = static_cast<double>(n);
  const T about = static_cast<T>(moments<true, false, T>(x, T(0), n).first / count);
  const auto [first, second] = moments<true, true>(x, about, n);
  to.add(count, static_cast<double>(about) + first / count, second - first * (first / count));
}

constexpr std::int64_t kAheadNumbers = 131072;  // of a group: the next one has room beside it in the second cache

// `ahead`: from x to what will be read after this group, 0 where that is not known.
template <Activation A, bool kStreamed, typename S, typename T>
inline void normalise(const S* x, GroupChannel<T> c, S* y, std::int64_t n, std::int64_t ahead) {
  const Vec<T> mean = all(c.mean), factor = all(c.factor), addend = all(c.addend);
  each_vector<T, kStreamed>(n, [&](std::int64_t i, auto lanes) {
    if (ahead) __builtin_prefetch(x + ahead + i, 0, 2);  // into the second cache
    lanes.store(y + i, activated<A, T>(fma(Vec<T>(lanes.load(x + i) - mean), factor, addend)));
  });
}

// du, and the sums of du and du (x - mean) added to A and E.
template <Activation A, typename S, typename T>
inline void differentiate(const S* x, const S* grad, GroupChannel<T> c, T* du, std::int64_t n, double* sums) {
  constexpr std::int64_t piece = 1024;  // numbers that are summed in the lanes of T
  const Vec<T> mean = all(c.mean), factor = all(c.factor), addend = all(c.addend);
  for (std::int64_t at = 0; at < n; at += piece) {
    Vec<T> a[2] = {}, e[2] = {};
    int way = 0;
    each_vector<T>(std::min(piece, n - at), [&](std::int64_t i, auto lanes) {
      const Vec<T> d = lanes.load(x + at + i) - mean;
      const Vec<T> g = through<A, T>(fma(d, factor, addend), lanes.load(grad + at + i));
      lanes.store(du + at + i, g);
      a[way] += g;
      e[way] = fma(g, d, e[way]);
      way ^= 1;
    });
    sums[0] += add_lanes(a[0] + a[1]);
    sums[1] += add_lanes(e[0] + e[1]);
  }
}

template <bool kStreamed, typename S, typename T>
inline void gradient(const S* x, const T* du, const S* above, T factor, GroupSlope<T> s, S* to, std::int64_t n) {
  const Vec<T> by = all(factor), pivot = all(s.pivot), slope = all(s.slope), offset = all(s.offset);
  each_vector<T, kStreamed>(n, [&](std::int64_t i, auto lanes) {
    Vec<T> g = fma(by, lanes.load(du + i), -fma(slope, Vec<T>(lanes.load(x + i) - pivot), offset));
    if (above) g += lanes.load(above + i);
    lanes.store(to + i, g);
  });
}

// Tiles of the rows of a group: f(channel, first position, numbers); of its one long row where the channels are joined.
template <typename F> inline void tiles(const GroupPlan& p, std::int64_t g, bool joined, F&& f) {
  const std::int64_t from = g * p.per_group(), to = joined ? from + 1 : from + p.per_group();
  const std::int64_t length = joined ? p.per_group() * p.positions : p.positions;
  for (std::int64_t c = from; c < to; ++c)
    for (std::int64_t i = 0; i < length; i += kGroupTile) f(c, i, std::min<std::int64_t>(kGroupTile, length - i));
}
template <typename F> inline void tiles(const GroupPlan& p, std::int64_t g, F&& f) {
  tiles(p, g, false, std::forward<F>(f));
}
inline bool joined(const GroupPlan& p, const GroupMap& m) { return !m.data || m.row_stride == p.positions; }

template <Activation A, bool kStreamed, typename S>
void forward_slabs(const GroupPlan& p, std::int64_t begin, std::int64_t end) {
  using T = Computed<S>;
  const bool own = !p.std.data;
  const bool one_row = joined(p, p.x) && joined(p, p.residual) && joined(p, p.sum);
  const GroupMap& of = p.residual.data ? p.sum : p.x;
  const bool near = !p.residual.data && p.per_group() * p.positions <= kAheadNumbers;
  const std::int64_t ahead = near ? p.per_group() * p.x.row_stride : 0;
  for (std::int64_t item = begin; item < end; ++item) {
    const std::int64_t b = item / p.groups, g = item % p.groups;
    Moments moments;
    if (own || p.residual.data)
      tiles(p, g, one_row, [&](std::int64_t c, std::int64_t i, std::int64_t n) {
        const S* const x = summed<S>(p, p.x.row(b, c) + i, p.residual.row(b, c) + i, p.sum.row(b, c) + i, n);
        if (own) add_tile(moments, x, n);
      });
    const GroupStatistics s = settle(p, b, g, moments.mean, moments.squares);
    tiles(p, g, [&](std::int64_t c, std::int64_t i, std::int64_t n) {
      const GroupChannel<T> channel = math::group_channel<T>(p, b, c, s.mean, s.rstd);
      normalise<A, kStreamed>(at<S>(of, of.row(b, c) + i), channel, at<S>(p.out, p.out.row(b, c) + i), n, ahead);
    });
  }
}

template <Activation A, bool kStreamed, typename S>
void backward_slabs(const GroupPlan& p, std::int64_t begin, std::int64_t end) {
  using T = Computed<S>;
  const std::int64_t per = p.per_group();
  const std::unique_ptr<T[]> scratch(new T[static_cast<std::size_t>(per * p.positions)]);
  for (std::int64_t item = begin; item < end; ++item) {
    const std::int64_t b = item / p.groups, g = item % p.groups;
    const double mean = p.stats[2 * item], rstd = p.stats[2 * item + 1];
    double* const sums = p.sums + (b * p.channels + g * per) * 2;
    std::fill(sums, sums + 2 * per, 0.0);
    const auto kept = [&](std::int64_t c, std::int64_t i) { return scratch.get() + (c - g * per) * p.positions + i; };
    tiles(p, g, [&](std::int64_t c, std::int64_t i, std::int64_t n) {
      differentiate<A>(at<S>(p.x, p.x.row(b, c) + i), at<S>(p.grad, p.grad.row(b, c) + i),
                       math::group_channel<T>(p, b, c, mean, rstd), kept(c, i), n, sums + 2 * (c - g * per));
    });
    double ka = 0, ke = 0;
    for (std::int64_t c = 0; c < per; ++c) {
      sums[2 * c + 1] = math::group_second<T>(p, mean, rstd, sums[2 * c], sums[2 * c + 1]);
      const double k = math::group_gain(p, b, g * per + c);
      ka += k * sums[2 * c], ke += k * sums[2 * c + 1];
    }
    const GroupSlope<T> slope = math::group_slope<T>(p, mean, rstd, ka, ke);
    tiles(p, g, [&](std::int64_t c, std::int64_t i, std::int64_t n) {
      const T factor = static_cast<T>(rstd * math::group_gain(p, b, c));
      const S* const above = p.grad_sum.data ? at<S>(p.grad_sum, p.grad_sum.row(b, c) + i) : nullptr;
      gradient<kStreamed>(at<S>(p.x, p.x.row(b, c) + i), kept(c, i), above, factor, slope,
                          at<S>(p.out, p.out.row(b, c) + i), n);
    });
  }
}

}  // namespace

void group_slabs(const GroupPlan& p, std::int64_t begin, std::int64_t end) {
  with_numbers(p, [&](auto number) {
    using S = decltype(number);
    with_activation(p.activation, [&](auto a) {
      with_streams<S>(p, [&](auto streamed) {
        if (p.backward) backward_slabs<a(), streamed(), S>(p, begin, end);
        else forward_slabs<a(), streamed(), S>(p, begin, end);
      });
    });
  });
}

}  // namespace fokker::cpu::FK_ISA
