// The von Mises-Fisher, resultant and mixture kernels against the scalar functions they are made of and against plain
// sums; usage: vmf_kernels <order> <seed> [quick]. Ends with a digest of all outputs.
#include <algorithm>
#include <cstdlib>

#include "emu/test/support.h"
#include "math/normal.h"
#include "math/vmf_bregman.h"
#include "math/vmf_sample.h"

using namespace fokker;
using namespace fokker::test;
using math::VmfFn;

namespace {

template <typename T> constexpr double kEps = sizeof(T) == 8 ? 2.3e-16 : 1.2e-7;

template <typename T> std::vector<T> concentrations(Random& random, int n) {
  std::vector<T> k = {T(0), T(1e-6), T(1), T(INFINITY), T(-1), T(NAN)};
  while (static_cast<int>(k.size()) < n) k.push_back(T(random.log_between(1e-3, 1e6)));
  return k;
}

template <VmfFn F, typename T> void scalar(std::int64_t dim, const std::vector<T>& in) {
  const auto n = static_cast<std::int64_t>(in.size());
  math::VmfConstants<T> c{};
  math::fill_vmf_constants(dim, &c);
  std::vector<T> got(n), want(n);
  Tensor k(const_cast<T*>(in.data()), kType<T>, {n}), out(got.data(), kType<T>, {n});
  cuda::vmf_scalar<T>(F, dim, plan(out, {&k}), kType<T>, got.data(), nullptr);
  for (std::int64_t i = 0; i < n; ++i) want[i] = math::vmf_element<F>(c, in[i]);
  expect_bits(got, want, "vmf_scalar " + std::to_string(int(F)) + " " + type_name<T>() + " dim " + std::to_string(dim));
}
template <typename T> void functions(std::int64_t dim, int count, Random& random) {
  const auto k = concentrations<T>(random, count);
  scalar<VmfFn::log_normalizer>(dim, k);
  scalar<VmfFn::mean_resultant>(dim, k);
  scalar<VmfFn::complement>(dim, k);
  scalar<VmfFn::resultant_derivative>(dim, k);
  scalar<VmfFn::resultant_second>(dim, k);
  scalar<VmfFn::entropy>(dim, k);
  scalar<VmfFn::kl_uniform>(dim, k);
  std::vector<T> r = {T(0), T(1), T(-0.5), T(2), T(NAN)};
  while (r.size() < 100) r.push_back(T(random()));
  scalar<VmfFn::concentration_from_resultant>(dim, r);
  scalar<VmfFn::concentration_from_complement>(dim, r);

  math::VmfConstants<T> c{};
  math::fill_vmf_constants(dim, &c);
  const std::int64_t a = 5, b = static_cast<std::int64_t>(k.size());
  std::vector<T> k1(k.begin() + 6, k.begin() + 6 + a), got[3], want[3];
  for (int o = 0; o < 3; ++o) got[o].resize(a * b), want[o].resize(a * b);
  Tensor t1(k1.data(), kType<T>, {a, 1}), t2(const_cast<T*>(k.data()), kType<T>, {b}),
      out(got[0].data(), kType<T>, {a, b});
  void* to[3] = {got[0].data(), got[1].data(), got[2].data()};
  cuda::vmf_bregman<T>(dim, plan(out, {&t1, &t2}), kType<T>, to, nullptr);
  for (std::int64_t i = 0; i < a * b; ++i) {
    T y[3];
    math::vmf_bregman_element(c, k1[i / b], k[i % b], y);
    for (int o = 0; o < 3; ++o) want[o][i] = k[i % b] >= 0 ? y[o] : T(NAN);
  }
  for (int o = 0; o < 3; ++o)
    expect_bits(got[o], want[o], std::string("vmf_bregman ") + type_name<T>() + " output " + std::to_string(o));
}

template <typename T> std::vector<T> unit_rows(Random& random, std::int64_t n, std::int64_t d) {
  std::vector<T> x(n * d);
  for (std::int64_t i = 0; i < n; ++i) {
    double square = 0;
    std::vector<double> row(d);
    for (auto& e : row) e = random.between(-1, 1), square += e * e;
    for (std::int64_t j = 0; j < d; ++j) x[i * d + j] = T(row[j] / std::sqrt(square));
  }
  return x;
}

template <typename T> void log_prob(std::int64_t n, std::int64_t d, Random& random) {
  auto x = unit_rows<T>(random, n, d), mean = unit_rows<T>(random, 1, d);
  std::vector<T> k(n), got(n), want(n);
  math::VmfConstants<double> c{};
  math::fill_vmf_constants(d, &c);
  for (std::int64_t i = 0; i < n; ++i) {
    k[i] = T(random.log_between(0.1, 1e3));
    long double dot = 0;
    for (std::int64_t j = 0; j < d; ++j) dot += static_cast<long double>(x[i * d + j]) * mean[j];
    want[i] = T(math::vmf_element<VmfFn::log_normalizer>(c, double(k[i])) + double(k[i]) * double(dot));
  }
  Tensor tx(x.data(), kType<T>, {n}, {d}), tm(mean.data(), kType<T>, {1}, {0}), tk(k.data(), kType<T>, {n}),
      to(got.data(), kType<T>, {n});
  cuda::vmf_log_prob<T>(d, plan(to, {&tx, &tm, &tk}), got.data(), nullptr);
  for (std::int64_t i = 0; i < n; ++i) {  // log C and k mu.x are of the size of k where they cancel
    const T size = std::max(k[i], T(1));
    got[i] /= size, want[i] /= size;
  }
  expect_near(got, want, 4 * kEps<T>, std::string("vmf_log_prob ") + type_name<T>() + " dim " + std::to_string(d));
}

// The same noise and map, one element after another in double.
template <typename T> void one_sample(const T* mean, std::int64_t d, double k, std::uint64_t seed, std::uint32_t step,
                                      std::uint64_t id, T* out, T* w, T* rest) {
  const auto c = math::vmf_cosine(d, k, seed, step, id);
  std::vector<double> z(d + 4);
  constexpr int per = 16 / sizeof(T);
  for (std::int64_t b = 0; b * per < d; ++b) {
    const auto words = math::noise(seed, step, math::Stream::vmf_tangent, id, std::uint32_t(b));
    if constexpr (sizeof(T) == 4) {
      const auto q = math::normal_block(words);
      z[4 * b] = q.z0, z[4 * b + 1] = q.z1, z[4 * b + 2] = q.z2, z[4 * b + 3] = q.z3;
    } else {
      const auto q = math::normal_pair(words);
      z[2 * b] = q.first, z[2 * b + 1] = q.second;
    }
  }
  double squares = 0, products = 0;
  for (std::int64_t j = 1; j < d; ++j) squares += z[j] * z[j], products += double(mean[j]) * z[j];
  const auto t = math::vmf_tangent(c, double(mean[0]), squares, products);
  for (std::int64_t j = 1; j < d; ++j) out[j] = T(t.scale * z[j] + t.slope * double(mean[j]));
  out[0] = T(t.head), *w = T(c.w), *rest = T(c.one_minus_w);
}
template <typename T> void samples(std::int64_t d, std::int64_t n, bool ids_given, Random& random) {
  const std::int64_t batch = ids_given ? n : 1;
  auto mean = unit_rows<T>(random, batch, d);
  if (batch > 2) std::fill(mean.begin(), mean.begin() + 2 * d, T(0)), mean[0] = T(1), mean[d] = T(-1);
  std::vector<T> k(batch), out(n * d), w(n), rest(n), want(n * d), want_w(n), want_rest(n);
  for (auto& e : k) e = T(random.log_between(1e-2, 1e5));
  if (batch > 3) k[2] = T(0), k[3] = T(1e8);
  std::vector<std::int64_t> ids(n);
  for (std::int64_t i = 0; i < n; ++i) ids[i] = ids_given ? 7 * i + (std::int64_t(1) << 33) : 1000 + i;
  const std::uint64_t seed = 0x0123456789abcdefu;
  cuda::vmf_sample<T>(mean.data(), batch == 1 ? 0 : d, k.data(), batch == 1 ? 0 : 1, batch,
                      ids_given ? ids.data() : nullptr, 1000, seed, 5, d, n, out.data(), w.data(), rest.data(),
                      nullptr);
  double unit = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t p = batch == 1 ? 0 : i;
    one_sample<T>(&mean[p * d], d, double(k[p]), seed, 5, std::uint64_t(ids[i]), &want[i * d], &want_w[i],
                  &want_rest[i]);
    double square = 0;
    for (std::int64_t j = 0; j < d; ++j) square += double(out[i * d + j]) * double(out[i * d + j]);
    unit = std::max(unit, std::abs(square - 1));
  }
  const std::string name =
      std::string(type_name<T>()) + " dim " + std::to_string(d) + ", " + std::to_string(n) + " samples";
  expect_bits(w, want_w, "vmf_sample, w, " + name);
  expect_bits(rest, want_rest, "vmf_sample, 1 - w, " + name);
  expect_near(out, want, 8 * kEps<T>, "vmf_sample, rows, " + name);
  check(unit < 16 * kEps<T>, "vmf_sample, unit rows, " + name);

  std::vector<T> g(n * d), grad_mean(n * d), grad_w(n), want_mean(n * d), want_gw(n);
  for (auto& e : g) e = T(random.between(-1, 1));
  double scale = 1;
  for (std::int64_t i = 0; i < n; ++i) {
    const T *mu = &mean[(batch == 1 ? 0 : i) * d], *gi = &g[i * d], *xi = &out[i * d];
    long double along = 0, across = 0;
    for (std::int64_t j = 0; j < d; ++j)
      along += static_cast<long double>(gi[j]) * mu[j],
          across += static_cast<long double>(gi[j]) * (static_cast<long double>(xi[j]) - mu[j]);
    const long double r = rest[i], square = r * (2 - r);
    want_gw[i] = T(square == 0 ? 0 : along - w[i] * (across + r * along) / square);
    scale = std::max(scale, square > 0 ? double(1 / std::sqrt(square)) : 1.0);
    for (std::int64_t j = 0; j < d; ++j)
      want_mean[i * d + j] = T(w[i] * static_cast<long double>(gi[j]) - along * xi[j]);
  }
  grad_mean = g;  // in place
  cuda::vmf_sample_backward<T>(grad_mean.data(), out.data(), mean.data(), batch == 1 ? 0 : d, batch, w.data(),
                               rest.data(), d, n, grad_mean.data(), grad_w.data(), nullptr);
  expect_near(grad_mean, want_mean, 16 * std::sqrt(double(d)) * kEps<T>, "vmf_sample_backward, mean, " + name);
  expect_near(grad_w, want_gw, 16 * std::sqrt(double(d)) * scale * kEps<T>, "vmf_sample_backward, w, " + name);
}
template <typename T> void cosine_gradient(std::int64_t d, Random& random) {
  const int n = 50;
  std::vector<T> k(n), a(n), b(n), w(n), r(n), got(n), want(n);
  math::VmfConstants<T> c{};
  math::fill_vmf_constants(d, &c);
  for (int i = 0; i < n; ++i) {
    k[i] = T(random.log_between(0.1, 1e4));
    a[i] = math::vmf_element<VmfFn::mean_resultant>(c, k[i]), b[i] = math::vmf_element<VmfFn::complement>(c, k[i]);
    const auto s = math::vmf_cosine(d, double(k[i]), 1, 2, std::uint64_t(i));
    w[i] = T(s.w), r[i] = T(s.one_minus_w);
    want[i] = math::vmf_cosine_gradient(d, k[i], a[i], b[i], w[i], r[i]);
  }
  cuda::vmf_cosine_gradient<T>(d, k.data(), a.data(), b.data(), w.data(), r.data(), got.data(), n, nullptr);
  expect_bits(got, want, std::string("vmf_cosine_gradient ") + type_name<T>() + " dim " + std::to_string(d));
}

template <typename T> void resultant(std::int64_t n, std::int64_t d, bool weighted, int rows, Random& random) {
  auto x = unit_rows<T>(random, n, d);
  if (n > 2) x[2 * d] += T(0.5);  // one row off the sphere
  std::vector<T> weights(weighted ? n : 0);
  for (auto& e : weights) e = T(random());
  std::vector<long double> sum(d, 0);
  long double total = 0, worst = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const long double weight = weighted ? static_cast<long double>(weights[i]) : 1;
    long double square = 0;
    for (std::int64_t j = 0; j < d; ++j)
      sum[j] += weight * x[i * d + j], square += static_cast<long double>(x[i * d + j]) * x[i * d + j];
    total += weight, worst = std::max(worst, std::abs(square - 1));
  }
  std::vector<double> partial(rows * (d + 2), NAN), got(d + 2, NAN), want(sum.begin(), sum.end());
  want.push_back(double(total)), want.push_back(double(worst));
  cuda::resultant<T>(x.data(), weighted ? weights.data() : nullptr, n, d, partial.data(), rows, got.data(), nullptr);
  expect_near(got, want, 2e-14,
              std::string("resultant ") + type_name<T>() + " " + std::to_string(n) + " x " + std::to_string(d));
}
template <typename T> void row_logsumexp(std::int64_t n, std::int64_t k, bool softmax, Random& random) {
  std::vector<T> logits(n * k), bias(k), out(n), want(n), shares(n * k);
  for (auto& e : logits) e = T(random.between(-30, 30));
  for (auto& e : bias) e = T(random.between(-5, 0));
  if (n > 1) std::fill(logits.begin(), logits.begin() + k, T(-INFINITY));
  const auto before = logits;
  for (std::int64_t i = 0; i < n; ++i) {
    double top = -INFINITY, sum = 0;
    for (std::int64_t j = 0; j < k; ++j) top = std::max(top, double(T(before[i * k + j] + bias[j])));
    const double shift = std::isfinite(top) ? top : 0;
    for (std::int64_t j = 0; j < k; ++j) sum += std::exp(double(T(before[i * k + j] + bias[j])) - shift);
    want[i] = T(shift + std::log(sum));
    for (std::int64_t j = 0; j < k; ++j)
      shares[i * k + j] = T(std::exp(double(T(before[i * k + j] + bias[j])) - shift) / sum);
  }
  cuda::row_logsumexp<T>(logits.data(), bias.data(), n, k, out.data(), softmax, nullptr);
  const std::string name =
      std::string("row_logsumexp ") + type_name<T>() + " " + std::to_string(n) + " x " + std::to_string(k);
  expect_near(out, want, 8 * kEps<T>, name);
  if (softmax) expect_near(logits, shares, 40 * kEps<T>, name + ", shares");
  else expect_bits(logits, before, name + " leaves the logits");
}

// Quick: a host thread for each CUDA thread under the thread sanitizer is slow.
template <typename T> void all(bool quick, Random& random) {
  using Sizes = std::vector<std::int64_t>;
  for (std::int64_t d : quick ? Sizes{5} : Sizes{2, 3, 64, 1000}) functions<T>(d, quick ? 20 : 150, random);
  for (std::int64_t d : quick ? Sizes{17, 4100} : Sizes{2, 3, 17, 130, 4100}) log_prob<T>(quick ? 9 : 37, d, random);
  for (std::int64_t d : quick ? Sizes{5, 300, 515} : Sizes{2, 3, 4, 5, 33, 128, 300, 515, 1030})
    samples<T>(d, quick || d >= 64 ? 5 : 70, d % 2 == 1, random);
  samples<T>(4100, 2, true, random);
  if (!quick) samples<T>(3, 40000, false, random);  // so many that a warp draws several cosines
  for (std::int64_t d : quick ? Sizes{50} : Sizes{2, 3, 50, 5000}) cosine_gradient<T>(d, random);
  for (std::int64_t d : quick ? Sizes{5, 300, 1500, 4097} : Sizes{2, 5, 20, 100, 300, 700, 1500, 2100, 4097})
    resultant<T>(quick ? 9 : d < 200 ? 333 : 30, d, d % 2 == 0, quick ? 2 : 3, random);
  resultant<T>(1, 3, false, 4, random);
  for (std::int64_t k : quick ? Sizes{40, 300} : Sizes{1, 5, 40, 100, 200, 300, 1000})
    row_logsumexp<T>(9, k, k % 2 == 0, random);
}

}  // namespace

int main(int argc, char** argv) {
  if (!emu::set_order(argc > 1 ? argv[1] : "forward", argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0)) return 2;
  Random random{98765};
  all<float>(argc > 3, random);
  all<double>(argc > 3, random);
  std::printf("digest %016llx\n", static_cast<unsigned long long>(digest));
  return failures != 0;
}
