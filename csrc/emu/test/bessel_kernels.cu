// The log-Bessel kernels against the scalar functions they are made of; usage: bessel_kernels <order> <seed> <n>.
// Every function, derivative, layout and dtype, over all regimes and the edges: the bits of the regime that the warp
// has chosen, and for values within the error bound of the element's own regime. Ends with a digest of all outputs.
#include <algorithm>
#include <cstdlib>

#include "emu/test/support.h"
#include "math/bessel.h"

using namespace fokker;
using namespace fokker::test;
using math::Fn;

namespace {

// Under a sanitizer only the launches matter; the references take minutes to compile there.
#ifdef FK_LAUNCH_ONLY
constexpr bool kCompare = false;
#else
constexpr bool kCompare = true;
#endif

constexpr const char* kNames[] = {"log_iv", "log_ive", "log_kv", "log_kve", "iv_ratio", "kv_ratio"};

template <Fn F, int Order, int R, typename T> void in_regime(int regime, T v, T x, T* out) {
  if constexpr (R + 1 < math::kRegimes<F, T>)
    if (regime != R) return in_regime<F, Order, R + 1>(regime, v, x, out);
  math::bessel_kernel<F, Order, R>(v, x, out);
}

// The regimes of n <= 32 lanes, the hardest of a family for all its members; the last lane's repeats change nothing.
template <Fn F, typename T> void choose(const T* v, const T* x, int n, int* own, int* chosen) {
  constexpr int small = math::kSmallRegime<T>, half = small + (math::is_k(F) ? math::kKSmallTiers / 2 : 1);
  const int begins[] = {0, math::kScaledRegime<T>, small, half, math::kEdgeRegime<F, T>, math::kRegimes<F, T>};
  for (int i = 0; i < n; ++i) own[i] = math::bessel_regime<F>(v[i], x[i]);
  for (int family = 0; family < 5; ++family) {
    int hardest = -1;
    const auto member = [&](int i) { return own[i] >= begins[family] && own[i] < begins[family + 1]; };
    for (int i = 0; i < n; ++i) hardest = member(i) ? std::max(hardest, own[i]) : hardest;
    for (int i = 0; i < n; ++i) chosen[i] = member(i) ? hardest : chosen[i];
  }
}

// What a launch over contiguous elements must give, and what each element would give alone.
template <typename T> struct Expected {
  std::vector<T> warp[3], alone[3];
};
template <Fn F, int Order, typename T> Expected<T> expected(const std::vector<T>& v, const std::vector<T>& x) {
  constexpr Fn G = Order < 2 ? F : F == Fn::log_ive ? Fn::log_iv : F == Fn::log_kve ? Fn::log_kv : F;
  Expected<T> e;
  for (int k = 0; k <= Order; ++k) e.warp[k].resize(v.size()), e.alone[k].resize(v.size());
  for (std::size_t base = 0; base < v.size(); base += 32) {
    const int n = static_cast<int>(std::min<std::size_t>(32, v.size() - base));
    int own[32], chosen[32];
    choose<G>(&v[base], &x[base], n, own, chosen);
    for (int i = 0; i < n; ++i) {
      T y[3];
      in_regime<G, Order, 0>(chosen[i], v[base + i], x[base + i], y);
      for (int k = 0; k <= Order; ++k) e.warp[k][base + i] = y[k];
      in_regime<G, Order, 0>(own[i], v[base + i], x[base + i], y);
      for (int k = 0; k <= Order; ++k) e.alone[k][base + i] = y[k];
    }
  }
  return e;
}
template <Fn F, typename T> Expected<T> expected(int order, const std::vector<T>& v, const std::vector<T>& x) {
  return order == 0 ? expected<F, 0>(v, x) : order == 1 ? expected<F, 1>(v, x) : expected<F, 2>(v, x);
}
template <typename T> Expected<T> expected(Fn fn, int order, const std::vector<T>& v, const std::vector<T>& x) {
  switch (fn) {
    case Fn::log_iv:
      return expected<Fn::log_iv>(order, v, x);
    case Fn::log_ive:
      return expected<Fn::log_ive>(order, v, x);
    case Fn::log_kv:
      return expected<Fn::log_kv>(order, v, x);
    case Fn::log_kve:
      return expected<Fn::log_kve>(order, v, x);
    case Fn::iv_ratio:
      return expected<Fn::iv_ratio>(order, v, x);
    default:
      return expected<Fn::kv_ratio>(order, v, x);
  }
}

template <typename T> struct Points {
  std::vector<T> v, x;
};
// A third each: the whole domain, the small regimes, one warp after another in one regime; then the edges.
template <typename T> Points<T> points(int n, Random& random) {
  Points<T> p;
  const double inf = INFINITY, top = sizeof(T) == 8 ? 1e300 : 1e37;
  const double edges[] = {0, 1e-300, 1e-40, 1e-30, 0.5, 1, 3.5, 25, inf, -1, NAN, top};
  for (double v : edges)
    for (double x : edges) p.v.push_back(T(v)), p.x.push_back(T(x));
  double radius = 1;
  for (int i = 0; i < n; ++i) {
    if (i % 3 == 0) p.v.push_back(T(random.log_between(1e-3, 1e6))), p.x.push_back(T(random.log_between(1e-8, 1e8)));
    else p.v.push_back(T(random.between(0, 26))), p.x.push_back(T(random.between(1e-3, 26)));
  }
  for (int i = 0; i < n; ++i) {
    if (i % 32 == 0) radius = random.log_between(0.1, 1e4);
    const double angle = random.between(0.01, 1.56);
    p.v.push_back(T(radius * std::sin(angle))), p.x.push_back(T(radius * std::cos(angle)));
  }
  return p;
}

template <typename T> void contiguous(const Points<T>& p) {
  const auto n = static_cast<std::int64_t>(p.v.size());
  Tensor v(const_cast<T*>(p.v.data()), kType<T>, {n}), x(const_cast<T*>(p.x.data()), kType<T>, {n});
  for (int f = 0; f < math::kFnCount; ++f)
    for (int order = 0; order <= 2; ++order) {
      const std::string name = std::string(kNames[f]) + " " + type_name<T>() + " order " + std::to_string(order);
      std::vector<T> got[3];
      void* out[3] = {};
      for (int k = 0; k <= order; ++k) got[k].resize(n), out[k] = got[k].data();
      cuda::bessel<T>(Fn(f), order, plan(Tensor(out[0], kType<T>, {n}), {&v, &x}), kType<T>, out, nullptr);
      if constexpr (kCompare) {
        const auto want = expected(Fn(f), order, p.v, p.x);
        for (int k = 0; k <= order; ++k) expect_bits(got[k], want.warp[k], name + " output " + std::to_string(k));
        if (order == 0)
          expect_near(got[0], want.alone[0], sizeof(T) == 8 ? 1e-15 : 4e-7, name + " against elements alone");
      }
      if (order != 1) continue;
      std::vector<T> last(n);
      void* one[3] = {nullptr, last.data(), nullptr};
      cuda::bessel<T>(Fn(f), 1, plan(Tensor(last.data(), kType<T>, {n}), {&v, &x}), kType<T>, one, nullptr);
      expect_bits(last, got[1], name + ", d/dx alone");
    }
}

// One order for all, an order a column, a transposed argument, three dimensions: the same bits as in full.
template <typename T> void layouts(Random& random) {
  const std::int64_t a = 3, b = 7, c = 33, n = a * b * c;
  std::vector<T> v(b), x(n), full_v(n), full_x(n), got(n), want(n);
  for (auto& e : v) e = T(random.between(0, 40));
  for (auto& e : x) e = T(random.between(0.1, 40));
  for (std::int64_t i = 0; i < n; ++i)
    full_v[i] = v[i / c % b], full_x[i] = x[i / (b * c) + (i / c % b) * a + i % c * a * b];
  Tensor strided_v(v.data(), kType<T>, {b, 1}), strided_x(x.data(), kType<T>, {a, b, c}, {1, a, a * b});
  Tensor flat_v(full_v.data(), kType<T>, {n}), flat_x(full_x.data(), kType<T>, {n});
  void *to[3] = {got.data()}, *full[3] = {want.data()};
  cuda::bessel<T>(Fn::log_kv, 0, plan(Tensor(got.data(), kType<T>, {a, b, c}), {&strided_v, &strided_x}), kType<T>, to,
                  nullptr);
  cuda::bessel<T>(Fn::log_kv, 0, plan(Tensor(want.data(), kType<T>, {n}), {&flat_v, &flat_x}), kType<T>, full, nullptr);
  expect_bits(got, want, std::string("broadcast and transposed operands, ") + type_name<T>());
  Tensor scalar_v(v.data(), kType<T>, {});
  std::fill(full_v.begin(), full_v.end(), v[0]);
  cuda::bessel<T>(Fn::iv_ratio, 0, plan(Tensor(got.data(), kType<T>, {n}), {&scalar_v, &flat_x}), kType<T>, to,
                  nullptr);
  cuda::bessel<T>(Fn::iv_ratio, 0, plan(Tensor(want.data(), kType<T>, {n}), {&flat_v, &flat_x}), kType<T>, full,
                  nullptr);
  expect_bits(got, want, std::string("one order for all, ") + type_name<T>());
}

// Half-precision operands compute in float: the same as widening them first and rounding the result last.
void halves(Random& random) {
  const std::int64_t n = 100;
  std::vector<Half> x(n), got(n);
  std::vector<BFloat16> xb(n), got_b(n);
  std::vector<float> wide(n), wide_b(n), want(n), want_b(n);
  Half order = to_half(7.25f);
  float wide_order = 7.25f;
  for (std::int64_t i = 0; i < n; ++i) {
    const float value = float(random.between(0.01, 50));
    x[i] = to_half(value), xb[i] = to_bfloat16(value);
    wide[i] = to_float(x[i]), wide_b[i] = to_float(xb[i]);
  }
  const auto run = [&](DType order_type, void* v, DType in_type, void* in, DType out_type, void* to) {
    Tensor tv(v, order_type, {1}), tx(in, in_type, {n});
    void* out[3] = {to};
    cuda::bessel<float>(Fn::log_iv, 0, plan(Tensor(to, out_type, {n}), {&tv, &tx}), out_type, out, nullptr);
  };
  run(DType::f16, &order, DType::f16, x.data(), DType::f16, got.data());
  run(DType::f32, &wide_order, DType::f32, wide.data(), DType::f32, want.data());
  run(DType::f32, &wide_order, DType::bf16, xb.data(), DType::bf16, got_b.data());
  run(DType::f32, &wide_order, DType::f32, wide_b.data(), DType::f32, want_b.data());
  int off = 0;
  for (std::int64_t i = 0; i < n; ++i)
    off += got[i].bits != to_half(want[i]).bits || got_b[i].bits != to_bfloat16(want_b[i]).bits;
  check(off == 0, "float16 and bfloat16 in and out");
}

}  // namespace

int main(int argc, char** argv) {
  if (!emu::set_order(argc > 1 ? argv[1] : "forward", argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0)) return 2;
  const int n = argc > 3 ? std::atoi(argv[3]) : 1000;
  Random random{12345};
  const auto f32 = points<float>(n, random);
  const auto f64 = points<double>(n, random);
  contiguous(f32);
  contiguous(f64);
  layouts<float>(random);
  layouts<double>(random);
  halves(random);
  std::printf("digest %016llx\n", static_cast<unsigned long long>(digest));
  return failures != 0;
}
