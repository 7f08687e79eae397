// Body of the pixel norms and weighted concatenations, once per instruction set: sums over channels in double, a
// pixel's in the order of its channels (or by lanes, where channels lie last).
//
// Bytes: x and the gradient once from memory; a tile of pixels is read again from the cache.
#include "cpu/pixels.h"
#include "cpu/sde_tile.inc.h"

namespace fokker::cpu::FK_ISA {
namespace {

template <typename T> class Pixels {
 public:
  explicit Pixels(const PixelsPlan& plan)
      : p_(plan),
        size_(plan.dtype == DType::f64   ? 8
              : plan.dtype == DType::f32 ? 4
                                         : 2),
        native_(size_ == sizeof(T)) {}

  // A pixel whose channels lie together.
  void row(std::int64_t i) {
    const std::int64_t at = i * p_.channels;
    double sums[2] = {0.0, 0.0};
    each(p_.channels, [&](std::int64_t c, int n) {
      const T *const x = read(p_.x, at + c, n, x_), *const both[2] = {x, p_.grad ? read(p_.grad, at + c, n, g_) : x};
      if (p_.grad) dots(2, x, both, n, sums);
      else dots(1, x, both, n, sums);
    });
    const PixelFactors f = pixel_factors(p_, sums[0], sums[1]);
    const T c[2] = {static_cast<T>(f.of_grad), static_cast<T>(-f.of_x)};
    each(p_.channels, [&](std::int64_t from, int n) {
      const T* const x = read(p_.x, at + from, n, x_);
      write(at + from, n, [&](T* y) {
        if (!p_.grad) return combine<true>(0, c[0], x, c + 1, &x, y, n);
        const T* const g = read(p_.grad, at + from, n, g_);
        combine<true>(1, c[0], g, c + 1, &x, y, n);
      });
    });
  }

  // Pixels [from, from + n), n at most kPixelRun, of an outer index whose pixels lie together.
  void tile(std::int64_t outer, std::int64_t from, int n) {
    const std::int64_t first = outer * p_.channels * p_.inner + from;
    std::fill(squares_, squares_ + n, 0.0);
    std::fill(products_, products_ + n, 0.0);
    for (std::int64_t c = 0; c < p_.channels; ++c) {
      if (c + 1 < p_.channels) {  // another page, where the hardware does not look ahead
        fetch(p_.x, first + (c + 1) * p_.inner, n);
        if (p_.grad) fetch(p_.grad, first + (c + 1) * p_.inner, n);
      }
      const T* const x = read(p_.x, first + c * p_.inner, n, x_);
      add(x, x, squares_, n);
      if (p_.grad) add(x, read(p_.grad, first + c * p_.inner, n, g_), products_, n);
    }
    for (int i = 0; i < n; ++i) {
      const PixelFactors f = pixel_factors(p_, squares_[i], products_[i]);
      of_grad_[i] = static_cast<T>(f.of_grad), of_x_[i] = static_cast<T>(f.of_x);
    }
    for (std::int64_t c = 0; c < p_.channels; ++c) {
      const std::int64_t at = first + c * p_.inner;
      const T *const x = read(p_.x, at, n, x_), *const g = p_.grad ? read(p_.grad, at, n, g_) : nullptr;
      write(at, n, [&](T* y) {
        const T *const a = of_grad_, *const b = of_x_;
        if (!g) {
#pragma omp simd
          for (int i = 0; i < n; ++i) y[i] = a[i] * x[i];
        } else {
#pragma omp simd
          for (int i = 0; i < n; ++i) y[i] = a[i] * g[i] - b[i] * x[i];
        }
      });
    }
  }

 private:
  template <typename F> static void each(std::int64_t count, F&& f) {
    for (std::int64_t i = 0; i < count; i += kSdeTile)
      f(i, static_cast<int>(std::min<std::int64_t>(kSdeTile, count - i)));
  }
  const T* read(const void* data, std::int64_t at, int n, T* buffer) const {
    if (native_) return static_cast<const T*>(data) + at;
    take_any(data, p_.dtype, at, 1, n, buffer);
    return buffer;
  }
  void fetch(const void* data, std::int64_t at, int n) const {
    const char* const from = static_cast<const char*>(data) + at * size_;
    for (int k = 0; k < n * size_; k += 64) __builtin_prefetch(from + k, 0, 2);
  }
  template <typename F> void write(std::int64_t at, int n, F&& fill) {
    if (native_) return fill(static_cast<T*>(p_.out) + at);
    fill(y_);
    give_any(y_, p_.out, p_.dtype, at, 1, n);
  }
  // sum[i] += a[i] b[i].
  static void add(const T* a, const T* b, double* sum, int n) {
    constexpr int lanes = kLanesOf<double>;
    int i = 0;
    for (; i + lanes <= n; i += lanes) store(sum + i, fma(widened(a + i), widened(b + i), load(sum + i)));
    for (; i < n; ++i) sum[i] = math::mad(static_cast<double>(a[i]), static_cast<double>(b[i]), sum[i]);
  }

  const PixelsPlan& p_;
  const int size_;
  const bool native_;
  alignas(64) T x_[kSdeTile], g_[kSdeTile], y_[kSdeTile], of_grad_[kPixelRun], of_x_[kPixelRun];
  alignas(64) double squares_[kPixelRun], products_[kPixelRun];
};

template <typename T> void pixels_of(const PixelsPlan& p, std::int64_t begin, std::int64_t end) {
  Pixels<T> pixels(p);
  const std::int64_t run = pixel_run(p), tiles = (p.inner + run - 1) / run;
  for (std::int64_t i = begin; i < end; ++i) {
    if (p.inner == 1) {
      pixels.row(i);
      continue;
    }
    const std::int64_t from = i % tiles * run;
    pixels.tile(i / tiles, from, static_cast<int>(std::min(run, p.inner - from)));
  }
}

// to[0 .. n) = w from[..]; places in numbers of the plan's type.
template <typename T>
inline void scaled(T w, const void* from, std::int64_t at, void* to, std::int64_t into, std::int64_t n, DType dtype) {
  const T* const* const none = nullptr;
  if (dtype == (sizeof(T) == 8 ? DType::f64 : DType::f32))
    return combine_of<0, true>(w, static_cast<const T*>(from) + at, &w, none, static_cast<T*>(to) + into, n);
  alignas(64) T made[kSdeTile];
  const T* const v = made;
  for (std::int64_t i = 0; i < n; i += kSdeTile) {
    const int count = static_cast<int>(std::min<std::int64_t>(kSdeTile, n - i));
    take_any(from, dtype, at + i, 1, count, made);
    combine_of<0, true>(w, v, &w, none, made, count);
    give_any(v, to, dtype, into + i, 1, count);
  }
}
template <typename T> void cat_of(const CatPlan& p, std::int64_t begin, std::int64_t end) {
  const std::int64_t row = p.of_a + p.of_b, pieces = (row + kCatPiece - 1) / kCatPiece;
  for (std::int64_t item = begin; item < end; ++item) {
    const std::int64_t i = item / pieces, from = item % pieces * kCatPiece, to = std::min(row, from + kCatPiece);
    const auto part = [&](void* own, double w, std::int64_t first, std::int64_t count) {
      const std::int64_t low = std::max(from, first), high = std::min(to, first + count);
      if (low >= high) return;
      const std::int64_t here = i * count + low - first, joined = i * row + low;
      if (p.split) scaled(static_cast<T>(w), p.joined, joined, own, here, high - low, p.dtype);
      else scaled(static_cast<T>(w), own, here, p.joined, joined, high - low, p.dtype);
    };
    part(p.a, p.wa, 0, p.of_a);
    part(p.b, p.wb, p.of_a, p.of_b);
  }
}

}  // namespace

void cat_run(const CatPlan& p, std::int64_t begin, std::int64_t end) {
  if (p.dtype == DType::f64) cat_of<double>(p, begin, end);
  else cat_of<float>(p, begin, end);
}

void pixels_run(const PixelsPlan& p, std::int64_t begin, std::int64_t end) {
  if (p.dtype == DType::f64) pixels_of<double>(p, begin, end);
  else pixels_of<float>(p, begin, end);
}

}  // namespace fokker::cpu::FK_ISA
