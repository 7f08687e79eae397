// The log-Bessel kernels against the scalar functions they are made of; usage: bessel_kernels <order> <seed> <n>.
// Every function, derivative, layout and dtype, over all regimes and the edges. Ends with a digest of all outputs.
#include <array>
#include <cstdlib>

#include "emu/test/support.h"
#include "math/bessel.h"

using namespace fokker;
using namespace fokker::test;
using math::Fn;

namespace {

constexpr const char* kNames[] = {"log_iv", "log_ive", "log_kv", "log_kve", "iv_ratio", "kv_ratio"};

template <Fn F, typename T> void element(int order, T v, T x, T* out) {
  if (order == 0) math::bessel_element<F, 0>(v, x, out);
  else if (order == 1) math::bessel_element<F, 1>(v, x, out);
  else math::bessel_element<F, 2>(v, x, out);
}
template <typename T> void element(Fn fn, int order, T v, T x, T* out) {
  switch (fn) {
    case Fn::log_iv: return element<Fn::log_iv>(order, v, x, out);
    case Fn::log_ive: return order < 2 ? element<Fn::log_ive>(order, v, x, out) : element<Fn::log_iv>(order, v, x, out);
    case Fn::log_kv: return element<Fn::log_kv>(order, v, x, out);
    case Fn::log_kve: return order < 2 ? element<Fn::log_kve>(order, v, x, out) : element<Fn::log_kv>(order, v, x, out);
    case Fn::iv_ratio: return element<Fn::iv_ratio>(order, v, x, out);
    case Fn::kv_ratio: return element<Fn::kv_ratio>(order, v, x, out);
  }
}

template <typename T> struct Points {
  std::vector<T> v, x;
};
// A third each: the whole domain, the small regimes, one warp after another in one regime; then the edges.
template <typename T> Points<T> points(int n, Random& random) {
  Points<T> p;
  const double inf = INFINITY, top = sizeof(T) == 8 ? 1e300 : 1e37;
  const double edges[] = {0, 1e-30, 0.5, 1, 3.5, 25, inf, -1, NAN, top};
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

// Tiers merged within a warp change a result by less than the error it is allowed, and only there.
template <typename T> double tolerance(int order) { return (sizeof(T) == 8 ? 1e-15 : 5e-7) * (order == 2 ? 8 : 1); }

template <typename T> void contiguous(const Points<T>& p) {
  const auto n = static_cast<std::int64_t>(p.v.size());
  Tensor v(const_cast<T*>(p.v.data()), kType<T>, {n}), x(const_cast<T*>(p.x.data()), kType<T>, {n});
  for (int f = 0; f < math::kFnCount; ++f)
    for (int order = 0; order <= 2; ++order) {
      std::vector<std::vector<T>> got(order + 1, std::vector<T>(n)), want = got;
      void* out[3] = {};
      for (int k = 0; k <= order; ++k) out[k] = got[k].data();
      cuda::bessel<T>(Fn(f), order, plan(Tensor(out[0], kType<T>, {n}), {&v, &x}), kType<T>, out, nullptr);
      for (std::int64_t i = 0; i < n; ++i) {
        T y[3];
        element(Fn(f), order, p.v[i], p.x[i], y);
        for (int k = 0; k <= order; ++k) want[k][i] = y[k];
      }
      for (int k = 0; k <= order; ++k)
        expect_near(got[k], want[k], tolerance<T>(order),
                    std::string(kNames[f]) + " " + type_name<T>() + " order " + std::to_string(order) + " output " + std::to_string(k));
      if (order != 1) continue;
      std::vector<T> alone(n);
      void* last[3] = {nullptr, alone.data(), nullptr};
      cuda::bessel<T>(Fn(f), 1, plan(Tensor(alone.data(), kType<T>, {n}), {&v, &x}), kType<T>, last, nullptr);
      expect_bits(alone, got[1], std::string(kNames[f]) + " " + type_name<T>() + " d/dx alone");
    }
}

// One order for all, an order a column, a transposed argument, three dimensions: the same bits as in full.
template <typename T> void layouts(Random& random) {
  const std::int64_t a = 3, b = 7, c = 33, n = a * b * c;
  std::vector<T> v(b), x(n), full_v(n), full_x(n), got(n), want(n);
  for (auto& e : v) e = T(random.between(0, 40));
  for (auto& e : x) e = T(random.between(0.1, 40));
  for (std::int64_t i = 0; i < n; ++i) full_v[i] = v[i / c % b], full_x[i] = x[i / (b * c) + (i / c % b) * a + i % c * a * b];
  Tensor strided_v(v.data(), kType<T>, {b, 1}), strided_x(x.data(), kType<T>, {a, b, c}, {1, a, a * b});
  Tensor flat_v(full_v.data(), kType<T>, {n}), flat_x(full_x.data(), kType<T>, {n});
  void *to[3] = {got.data()}, *full[3] = {want.data()};
  cuda::bessel<T>(Fn::log_kv, 0, plan(Tensor(got.data(), kType<T>, {a, b, c}), {&strided_v, &strided_x}), kType<T>, to, nullptr);
  cuda::bessel<T>(Fn::log_kv, 0, plan(Tensor(want.data(), kType<T>, {n}), {&flat_v, &flat_x}), kType<T>, full, nullptr);
  expect_bits(got, want, std::string("broadcast and transposed operands, ") + type_name<T>());
  Tensor scalar_v(v.data(), kType<T>, {});
  std::fill(full_v.begin(), full_v.end(), v[0]);
  cuda::bessel<T>(Fn::iv_ratio, 0, plan(Tensor(got.data(), kType<T>, {n}), {&scalar_v, &flat_x}), kType<T>, to, nullptr);
  cuda::bessel<T>(Fn::iv_ratio, 0, plan(Tensor(want.data(), kType<T>, {n}), {&flat_v, &flat_x}), kType<T>, full, nullptr);
  expect_bits(got, want, std::string("one order for all, ") + type_name<T>());
}

void halves(Random& random) {
  const std::int64_t n = 100;
  std::vector<Half> v(n), x(n), got(n), want(n);
  std::vector<BFloat16> xb(n), got_b(n), want_b(n);
  for (std::int64_t i = 0; i < n; ++i) {
    v[i] = to_half(float(random.between(0, 50))), x[i] = to_half(float(random.between(0.01, 50)));
    xb[i] = to_bfloat16(to_float(x[i]));
    float y;
    element(Fn::log_iv, 0, to_float(v[0]), to_float(x[i]), &y);
    want[i] = to_half(y);
    element(Fn::log_iv, 0, to_float(v[0]), to_float(xb[i]), &y);
    want_b[i] = to_bfloat16(y);
  }
  Tensor tv(v.data(), DType::f16, {1}), tx(x.data(), DType::f16, {n}), tb(xb.data(), DType::bf16, {n});
  void *to[3] = {got.data()}, *to_b[3] = {got_b.data()};
  cuda::bessel<float>(Fn::log_iv, 0, plan(Tensor(got.data(), DType::f16, {n}), {&tv, &tx}), DType::f16, to, nullptr);
  cuda::bessel<float>(Fn::log_iv, 0, plan(Tensor(got_b.data(), DType::bf16, {n}), {&tv, &tb}), DType::bf16, to_b, nullptr);
  int off = 0;  // a tier's difference may turn a rounding
  for (std::int64_t i = 0; i < n; ++i)
    off += std::abs(int(got[i].bits) - int(want[i].bits)) > 1 || std::abs(int(got_b[i].bits) - int(want_b[i].bits)) > 1;
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
