// The scalar half of von Mises-Fisher sampling: the cosine w = mu.x by rejection, and its implicit derivative in k.
//
// The density of w on [-1, 1] is proportional to (1 - t^2)^((d-3)/2) exp(k t). Wood 1994 (after Ulrich 1984) proposes
//   w = (1 - b r) / (1 + b r),   r = z / (1 - z),  z ~ Beta(n/2, n/2),  n = d - 1,  b = n / (2k + sqrt(4k^2 + n^2)).
// Written in y = 2z - 1, with D = (1 - y) + b (1 + y), nothing cancels and k drops out of the acceptance test:
//   1 - w = 2b (1 + y) / D,   1 + w = 2 (1 - y) / D,   s = (1 - b) y / D,   accept if log u <= n (log(1 + s) - s).
// The symmetric beta variate is Ulrich's, exact and without rejection for every d >= 2 (Devroye 1986, chapter IX.4):
//   y = sqrt(1 - U^(2/(d-2))) cos(2 pi V).
// The chance to accept is above 0.65 for every d and k (least at d = 2, k -> inf; 0.70 for large d; 1 at k = 0), 1.5
// attempts at the most on average. d = 3 inverts its distribution function: no rejection.
//
// Everything is double, also for float data: it is done once a sample, and 1 - w needs it when k is large. Every
// product-sum is an explicit fma or an unfusable pattern, so that all builds accept the same proposals and give the
// same bits.
#pragma once

#include "math/normal.h"

namespace fokker::math {

// Both, because 1 - w is what is left of w when k is large: 1 - w ~ d / (2k).
struct VmfCosine {
  double w, one_minus_w;
};

// After this many rejections the sample is nan; 0.35^1024 never happens, so this only keeps a GPU from hanging.
constexpr int vmf_max_attempts = 1024;
// Block 2a of the counter holds U and V of attempt a, block 2a + 1 the u of its test.
constexpr int vmf_blocks_per_attempt = 2;

struct VmfEnvelope {
  double concentration, b, one_minus_b;
};

// k < 0 or nan gives nan, which is then accepted at once; k = inf gives b = 0, hence w = 1.
FK_HD FK_INLINE VmfEnvelope vmf_envelope(std::int64_t dim, double concentration) {
  const double k = concentration >= 0.0 ? concentration : quiet_nan<double>();
  const double n = static_cast<double>(dim - 1), two_k = 2.0 * k;
  const double large = two_k > n ? two_k : n, q = (two_k > n ? n : two_k) / large;
  const double root = large * sqrt(fma(q, q, 1.0)), sum = two_k + root;  // root = sqrt(4k^2 + n^2) without overflow
  const double one_minus_b = fma(two_k, two_k / (root + n), two_k) / sum;
  return {k, n / sum, sum < infinity<double>() ? one_minus_b : (sum != sum ? sum : 1.0)};
}

struct VmfAttempt {
  VmfCosine cosine;
  bool accepted;
};

namespace detail {

// e^x and 1 - e^x for x <= 0, the same bits on every build (exp and expm1 of elementary.h leave their fusing to the
// build).
struct ExpPair {
  double exp, one_minus_exp;
};
FK_HD FK_INLINE ExpPair vmf_exp(double x_in) {
  const double x = x_in > -700.0 ? x_in : (x_in == x_in ? -700.0 : x_in);
  const double n = round_to_integer(x * 1.4426950408889634);
  const double r = fma(-n, Format<double>::ln2_lo, fma(-n, Format<double>::ln2_hi, x));
  constexpr double c[] = {0.5,
                          0.16666666666666685,
                          0.04166666666666673,
                          0.008333333333316739,
                          0.0013888888888858623,
                          0.00019841269897059047,
                          2.4801587373399124e-05,
                          2.7557234236906983e-06,
                          2.7557233643259204e-07,
                          2.5112239749814175e-08,
                          2.0926857773632753e-09};  // as in exp_parts
  const double p = fma(r * r, polynomial<true, 0>(c, r), r), scale = pow2(n);
  return {fma(scale, p, scale), fma(-scale, p, 1.0 - scale)};
}

// log(1 + x) for x > -1, the same bits on every build.
FK_HD FK_INLINE double vmf_log1p(double x) {
  const double u = 1.0 + x;
  return log_normal<true>(u) + (x - (u - 1.0)) / u;
}

// uniform() without its 1.
FK_HD FK_INLINE double vmf_uniform(uint32_t high, uint32_t low) { return min(uniform(high, low), 1.0 - 0x1p-53); }

}  // namespace detail

// `proposal` gives U and V, the first two words of `test` give u. Branch-free.
FK_HD FK_INLINE VmfAttempt vmf_attempt(std::int64_t dim, const VmfEnvelope& e, Words proposal, Words test) {
  const double n = static_cast<double>(dim - 1);
  const double u = detail::vmf_uniform(proposal.w0, proposal.w1), v = detail::vmf_uniform(proposal.w2, proposal.w3);
  const auto power = detail::vmf_exp(2.0 * detail::log_normal<true>(u) / (n - 1.0));   // d = 2: -inf, the radius is 1
  const double radius = sqrt(power.one_minus_exp), rest = power.exp / (1.0 + radius);  // rest = 1 - radius
  const auto half = detail::sincos_2pi<true>(0.5 * v);
  const double y = radius * ((half.cos - half.sin) * (half.cos + half.sin));
  const double one_plus_y = fma(2.0 * radius, half.cos * half.cos, rest);
  const double one_minus_y = fma(2.0 * radius, half.sin * half.sin, rest);
  const double denominator = fma(e.b, one_plus_y, one_minus_y), s = e.one_minus_b * y / denominator;
  const bool rejected =
      detail::log_normal<true>(detail::vmf_uniform(test.w0, test.w1)) > n * (detail::vmf_log1p(s) - s);
  return {{fma(-e.b, one_plus_y, one_minus_y) / denominator, min(2.0 * e.b * one_plus_y / denominator, 2.0)},
          !rejected};
}

// d = 3: F(w) = (exp(k(w-1)) - exp(-2k)) / (1 - exp(-2k)) solved for 1 - w at F = 1 - U. Branch-free.
FK_HD FK_INLINE VmfCosine vmf_cosine_dim3(const VmfEnvelope& e, Words proposal) {
  const double u = detail::vmf_uniform(proposal.w0, proposal.w1), k = e.concentration;
  const double general = -detail::vmf_log1p(-u * detail::vmf_exp(-2.0 * k).one_minus_exp) / k;
  const double one_minus_w = min(k < 1e-300 ? 2.0 * u : general, 2.0);
  return {1.0 - one_minus_w, one_minus_w};
}

// w for one sample: a pure function of (seed, step, sample id).
FK_HD inline VmfCosine vmf_cosine(std::int64_t dim, double concentration, std::uint64_t seed, std::uint32_t step,
                                  std::uint64_t sample) {
  const VmfEnvelope e = vmf_envelope(dim, concentration);
  for (std::uint32_t attempt = 0; attempt < vmf_max_attempts; ++attempt) {
    const std::uint32_t block = vmf_blocks_per_attempt * attempt;
    const Words proposal = noise(seed, step, Stream::vmf_rejection, sample, block);
    if (dim == 3) return vmf_cosine_dim3(e, proposal);
    const auto a = vmf_attempt(dim, e, proposal, noise(seed, step, Stream::vmf_rejection, sample, block + 1));
    if (a.accepted) return a.cosine;
  }
  return {quiet_nan<double>(), quiet_nan<double>()};
}

// What maps the normals z (element = coordinate; z[0] is not used) and mu to a sample, given two sums over j >= 1:
//   x = w mu + sqrt(1 - w^2) H [0, z / |z|],  H = I - u u' / (1 + |mu_0|),  u = mu + sign(mu_0) e_0.
// H e_0 = -sign(mu_0) mu, and 1 + |mu_0| >= 1: no direction is special, mu = e_0 and mu = -e_0 included.
//   x_0 = head,  x_j = scale z_j + slope mu_j.
struct VmfTangent {
  double scale, slope, head;
};
FK_HD FK_INLINE VmfTangent vmf_tangent(const VmfCosine& c, double mean_0, double sum_squares, double sum_mean_z) {
  const double sine = sqrt(c.one_minus_w * (2.0 - c.one_minus_w)), scale = sine / sqrt(sum_squares);
  const double a = scale * sum_mean_z;
  return {scale, c.w - a / (1.0 + abs(mean_0)), c.w * mean_0 - (mean_0 >= 0.0 ? a : -a)};
}

// ---- dw/dk at a fixed probability F(w), the implicit reparameterisation (Figurnov, Mohamed, Mnih 2018) ----
//
//   dw/dk = -(1 / f(w)) int_{-1}^{w} (t - A) f(t) dt,   A = E[w],
// and as the whole integral vanishes it is also (1 / f(w)) int_{w}^{1} (t - A) f(t) dt: of the two sides the one that
// leaves A out is taken, on which (t - A) keeps its sign and no digit cancels. With t = cos(phi) and phi = phi_w -+ 2
// delta,
//   dw/dk = 2 sin(phi_w) int |t - A| exp(-drop) d(delta),   drop = -(d-2) log(sin phi / sin phi_w) - k (t - w),
// a smooth integrand for every d >= 2 (the endpoint singularity of d = 2 is gone), then delta = 2 atan(z), so that a
// node costs one logarithm, one exponential and one division. The range ends where drop = vmf_drop or at the pole.

// -log of the density left out, relative to f(w).
constexpr double vmf_drop = 32.0;

struct VmfTail {
  double concentration, power, side, half_sine, half_cosine, cotangent, deviation, span;
};

FK_HD FK_INLINE VmfTail vmf_tail(std::int64_t dim, double k, double mean, double one_minus_mean, double w_in,
                                 double one_minus_w_in) {
  const bool near_one = one_minus_w_in < 0.5;  // of w and 1 - w the smaller one is taken as the truth
  const double minus = near_one ? one_minus_w_in : 1.0 - w_in, plus = near_one ? 2.0 - one_minus_w_in : 1.0 + w_in;
  const double w = near_one ? 1.0 - one_minus_w_in : w_in;
  const double deviation = mean > 0.5 ? one_minus_mean - minus : w - mean;
  const double side = deviation >= 0.0 ? 1.0 : -1.0, end = deviation >= 0.0 ? minus : plus;
  const double n = static_cast<double>(dim - 2);
  // The drop is convex in tau = |t - w|: from its parabola at w two Newton steps come to the cut, or a little beyond
  // it.
  const double around = minus * plus, curvature = n * (1.0 + w * w) / (around * around);
  const double slope = side * (n * w / around - k), root = sqrt(slope * slope + 2.0 * vmf_drop * curvature);
  const double local = slope > 0.0       ? 2.0 * vmf_drop / (slope + root)
                       : curvature > 0.0 ? (root - slope) / curvature
                                         : infinity<double>();
  const double last = end * 0.984375;
  const auto newton = [=](double tau) {
    const double m = minus - side * tau, p = plus + side * tau;
    const double drop = -0.5 * n * log((m / minus) * (p / plus)) - side * k * tau;
    const double gain = side * (n * (w + side * tau) / (m * p) - k);
    return gain > 0.0 ? min(tau - (drop - vmf_drop) / gain, last) : last;
  };
  double tau = newton(newton(min(local, last)));
  tau = tau < last ? tau : end;
  const double half_sine = sqrt(0.5 * minus), half_cosine = sqrt(0.5 * plus);
  const double s = sqrt(max(0.5 * (minus - side * tau), 0.0)), c = sqrt(max(0.5 * (plus + side * tau), 0.0));
  const double sin_delta = 0.5 * tau / (s * half_cosine + c * half_sine);
  const double span = sin_delta / (1.0 + (c * half_cosine + s * half_sine));
  return {k, n, side, half_sine, half_cosine, w / (half_sine * half_cosine), abs(deviation), span};
}

// The integrand at z = span * node, times d(delta)/dz / (2 span).
FK_HD FK_INLINE double vmf_tail_term(const VmfTail& a, double node) {
  const double z = a.span * node, q = 1.0 / (1.0 + z * z);
  const double cosine = (1.0 - z) * (1.0 + z) * q, sine = 2.0 * z * q;  // of delta
  const double s = a.half_sine * cosine - a.side * (a.half_cosine * sine);
  const double c = a.half_cosine * cosine + a.side * (a.half_sine * sine);
  const double tau = 2.0 * sine * (s * a.half_cosine + c * a.half_sine);             // |t - w|
  const double ratio = -2.0 * sine * sine - a.side * a.cotangent * (sine * cosine);  // sin phi / sin phi_w - 1
  const double log_ratio = a.power * log1p(max(ratio, -0.9999999999999999)) + a.side * (a.concentration * tau);
  return exp(log_ratio) * (a.deviation + tau) * q;
}

FK_HD FK_INLINE double vmf_tail_result(const VmfTail& a, double sum) {
  const double y = 8.0 * a.half_sine * a.half_cosine * a.span * sum;
  const bool inside = a.half_sine > 0.0 && a.half_cosine > 0.0 && a.concentration < infinity<double>();
  const bool valid = a.concentration >= 0.0 && a.half_sine >= 0.0 && a.half_cosine >= 0.0;
  return valid ? (inside ? y : 0.0) : quiet_nan<double>();  // the ends of [-1, 1] do not move
}

// Gauss-Legendre on [0, 1]: relative error below 3e-11 for d = 2 .. 1e6, k = 0 .. 1e8; it is most at d = 2.
constexpr int vmf_nodes = 24;
FK_HD FK_INLINE double vmf_node(int i) {
  static constexpr double x[] = {0.00240639000148932, 0.012635722014345251, 0.030862723998633622, 0.056792236497799485,
                                 0.08999900701304854, 0.12993790421072282,  0.17595317403151223,  0.22728926430558022,
                                 0.2831032461869774,  0.3424786601519183,   0.40444056626319186,  0.4679715535686972,
                                 0.5320284464313028,  0.5955594337368082,   0.6575213398480817,   0.7168967538130225,
                                 0.7727107356944197,  0.8240468259684878,   0.8700620957892772,   0.9100009929869515,
                                 0.9432077635022005,  0.9691372760013663,   0.9873642779856547,   0.9975936099985107};
  return x[i];
}
FK_HD FK_INLINE double vmf_weight(int i) {
  static constexpr double c[] = {0.0061706148999936,  0.014265694314466832, 0.022138719408709904, 0.02964929245771839,
                                 0.03667324070554015, 0.04309508076597664,  0.04880932605205694,  0.05372213505798282,
                                 0.0577528340268628,  0.060835236463901696, 0.06291872817341415,  0.06396909767337608,
                                 0.06396909767337608, 0.06291872817341415,  0.060835236463901696, 0.0577528340268628,
                                 0.05372213505798282, 0.04880932605205694,  0.04309508076597664,  0.03667324070554015,
                                 0.02964929245771839, 0.022138719408709904, 0.014265694314466832, 0.0061706148999936};
  return c[i];
}

// mean = A(d, k) and one_minus_mean = 1 - A: either alone loses the digits that matter at one end of k.
template <typename T>
FK_HD inline T vmf_cosine_gradient(std::int64_t dim, T concentration, T mean, T one_minus_mean, T w, T one_minus_w) {
  const VmfTail a = vmf_tail(dim, concentration, mean, one_minus_mean, w, one_minus_w);
  double sum = 0.0;
  for (int i = 0; i < vmf_nodes; ++i) sum += vmf_weight(i) * vmf_tail_term(a, vmf_node(i));
  return static_cast<T>(vmf_tail_result(a, sum));
}

}  // namespace fokker::math
