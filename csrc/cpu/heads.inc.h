// Norm and rotary embedding of attention heads, compiled once per instruction set: a token at a time, whose table of
// cosines is laid out once for all heads of its queries and keys.
#include "cpu/heads_vector.inc.h"

namespace fokker::cpu::FK_ISA {
namespace {

template <typename T> struct Token {
  const HeadsPlan& p;
  const Segments<T> s;
  Padded<T> cos, sin;  // the sine signed: -, + in each pair
  Padded<T> weight[2], bias[2], keep, x, g, a;
  Padded<T> to_weight, to_bias;
  const bool split;         // half-split pairs of a head's first elements, in one segment
  Padded<T> turns, others;  // then a row, and what `exchange` makes of it

  explicit Token(const HeadsPlan& plan) : p(plan), s(plan), split(!plan.interleaved && s.count == 1) {
    if (split) std::fill(others.v, others.v + kPadded, T(0));
    const auto fill = [&](Padded<T>& to, const void* from, T otherwise) {
      std::fill(to.v, to.v + kPadded, T(0));
      for (int j = 0; j < p.dim; ++j) to.v[s.at(j)] = from ? static_cast<const T*>(from)[j] : otherwise;
    };
    for (int i = 0; i < std::min(p.parts, 2); ++i)
      fill(weight[i], p.part[i].weight, T(1)), fill(bias[i], p.part[i].bias, T(0));
    fill(keep, nullptr, T(1)), fill(cos, nullptr, T(1)), fill(sin, nullptr, T(0));
  }
  void turn(std::int64_t b, std::int64_t t) {
    const std::int64_t at = b * p.table_batch + t * p.width;
    const T *const c = static_cast<const T*>(p.cos) + at, *const n = static_cast<const T*>(p.sin) + at;
    for (int j = 0; j < p.rotary; ++j) {
      const int to = s.at(j), from = p.entry(j);
      const bool first = p.interleaved ? j % 2 == 0 : j < p.rotary / 2;
      cos.v[to] = c[from];
      sin.v[to] = first ? -n[from] : n[from];
    }
  }

  // Of the row in `turns`: the other element of each pair that is turned, and 0 for the rest.
  void exchange() {
    const int half = p.rotary / 2;
    for (int j = 0; j < half; j += s.lanes) store(others.v + j, load(turns.v + half + j));
    for (int j = 0; j < half; j += s.lanes) store(others.v + half + j, load(turns.v + j));
    store(others.v + p.rotary, Vec<T>{});
  }

  // Where vector i of segment k of a row starts in memory that is read as it is, or its copy.
  struct Row {
    const T* from;
    int step;  // from one segment to the next
  };
  Row read(const HeadTensor& t, std::int64_t at, Padded<T>& copy) const {
    if (p.dtype == (p.wide ? DType::f64 : DType::f32) && t.element == 1)
      return {static_cast<const T*>(t.data) + at, s.size};
    for (int k = 0; k < s.count; ++k)
      take_any(t.data, p.dtype, at + k * s.size * t.element, t.element, s.size, copy.v + k * s.stride);
    return {copy.v, s.stride};
  }
  Vec<T> vector(const Row& r, int k, int i) const {
    const T* const at = r.from + k * r.step + i * s.lanes;
    return i + 1 < s.vectors || s.tail == s.lanes ? load(at) : load_first(at, s.tail);
  }

  T mean = 0, rstd = 1;
  // Copies a row into x and takes its statistics.
  template <bool kLayer> void measure(const Row& r) {
    Vec<T> sum{}, other{};
    for (int k = 0; k < s.count; ++k)
      for (int i = 0; i < s.vectors; ++i) {
        const Vec<T> v = vector(r, k, i);
        store(x.v + k * s.stride + i * s.lanes, v);
        Vec<T>& to = i & 1 ? other : sum;
        to = kLayer ? Vec<T>(to + v) : fma(v, v, to);
      }
    double square = add_lanes(Vec<T>(sum + other));
    mean = 0;
    if (kLayer) {
      mean = static_cast<T>(square / p.dim);
      sum = other = Vec<T>{};
      for (int k = 0; k < s.count; ++k)
        for (int i = 0; i < s.vectors; ++i) {
          const int at = k * s.stride + i * s.lanes;
          const Vec<T> v = (load(x.v + at) - all(mean)) * load(keep.v + at);
          Vec<T>& to = i & 1 ? other : sum;
          to = fma(v, v, to);
        }
      square = add_lanes(Vec<T>(sum + other));
    }
    rstd = static_cast<T>(1.0 / std::sqrt(square / p.dim + p.eps));
  }
  void statistics(const Row& r) {
    if (p.norm == HeadNorm::layer) return measure<true>(r);
    measure<false>(r);
    if (p.norm == HeadNorm::none) rstd = 1;
  }

  // The row in `a`, or f(offset, vector, lanes) straight into memory.
  T* direct(const HeadTensor& t, std::int64_t at) const {
    return p.dtype == (p.wide ? DType::f64 : DType::f32) && t.element == 1 ? static_cast<T*>(t.data) + at : nullptr;
  }
  void write(T* to, int k, int i, Vec<T> v) {
    if (!to) return store(a.v + k * s.stride + i * s.lanes, v);
    T* const at = to + k * s.size + i * s.lanes;
    if (i + 1 < s.vectors || s.tail == s.lanes) store(at, v);
    else store_first(at, v, s.tail);
  }
  void finish(const HeadTensor& t, std::int64_t at, const T* to) const {
    if (to) return;
    for (int k = 0; k < s.count; ++k)
      give_any(a.v + k * s.stride, t.data, p.dtype, at + k * s.size * t.element, t.element, s.size);
  }

  Vec<T> normalized(int at, int i) const {
    const Vec<T> unit = (load(x.v + at) - all(mean)) * all(rstd);
    return fma(unit, load(weight[i].v + at), load(bias[i].v + at));
  }
  // A row that lies as it is read, of C segments of V vectors, held in registers.
  template <bool kRope, int C, int V>
  void forward_fixed(const HeadPart& part, int i, std::int64_t from, std::int64_t at) {
    const T* const row = static_cast<const T*>(part.x.data) + from;
    const bool full = s.tail == s.lanes;
    Vec<T> u[C][V], sum{}, other{};
#pragma GCC unroll 2
    for (int k = 0; k < C; ++k)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const T* const p_at = row + k * s.size + v * s.lanes;
        u[k][v] = v + 1 < V || full ? load(p_at) : load_first(p_at, s.tail);
        Vec<T>& to = v & 1 ? other : sum;
        to = p.norm == HeadNorm::layer ? Vec<T>(to + u[k][v]) : fma(u[k][v], u[k][v], to);
      }
    if (p.norm == HeadNorm::layer) {
      const Vec<T> middle = all(static_cast<T>(add_lanes(Vec<T>(sum + other)) / p.dim));
      sum = other = Vec<T>{};
#pragma GCC unroll 2
      for (int k = 0; k < C; ++k)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
          u[k][v] = (u[k][v] - middle) * load(keep.v + k * s.stride + v * s.lanes);
          Vec<T>& to = v & 1 ? other : sum;
          to = fma(u[k][v], u[k][v], to);
        }
    }
    const double square = add_lanes(Vec<T>(sum + other)) / p.dim + p.eps;
    const Vec<T> scale = all(p.norm == HeadNorm::none ? T(1) : static_cast<T>(1.0 / std::sqrt(square)));
    T* const to = direct(part.out, at);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const int first = v * s.lanes, second = s.stride + first;
      const Vec<T> n = fma(Vec<T>(u[0][v] * scale), load(weight[i].v + first), load(bias[i].v + first));
      if constexpr (C == 1) {
        if (kRope && split) store(turns.v + first, n);
        else write(to, 0, v, kRope ? fma(n, load(cos.v + first), Vec<T>(swapped(n) * load(sin.v + first))) : n);
      } else {
        const Vec<T> m = fma(Vec<T>(u[C - 1][v] * scale), load(weight[i].v + second), load(bias[i].v + second));
        write(to, 0, v, kRope ? fma(n, load(cos.v + first), Vec<T>(m * load(sin.v + first))) : n);
        write(to, 1, v, kRope ? fma(m, load(cos.v + second), Vec<T>(n * load(sin.v + second))) : m);
      }
    }
    if (C == 1 && kRope && split) {
      exchange();
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) turned(to, v);
    }
    finish(part.out, at, to);
  }
  // Vector v of a row in `turns`, whose pairs are exchanged.
  void turned(T* to, int v) {
    const int at = v * s.lanes;
    write(to, 0, v, fma(load(turns.v + at), load(cos.v + at), Vec<T>(load(others.v + at) * load(sin.v + at))));
  }
  template <bool kRope> void forward(const HeadPart& part, int i, std::int64_t from, std::int64_t at) {
    if (p.dtype == (p.wide ? DType::f64 : DType::f32) && part.x.element == 1) {
      switch (s.vectors > 8 ? 0 : 8 * s.count + s.vectors - 1) {
        case 8 + 3:
          return forward_fixed<kRope, 1, 4>(part, i, from, at);
        case 8 + 4:
          return forward_fixed<kRope, 1, 5>(part, i, from, at);
        case 8 + 7:
          return forward_fixed<kRope, 1, 8>(part, i, from, at);
        case 16 + 1:
          return forward_fixed<kRope, 2, 2>(part, i, from, at);
        case 16 + 2:
          return forward_fixed<kRope, 2, 3>(part, i, from, at);
        case 16 + 3:
          return forward_fixed<kRope, 2, 4>(part, i, from, at);
      }
    }
    statistics(read(part.x, from, g));
    T* const to = direct(part.out, at);
    if (kRope && split) {
      for (int v = 0; v < s.vectors; ++v) store(turns.v + v * s.lanes, normalized(v * s.lanes, i));
      exchange();
      for (int v = 0; v < s.vectors; ++v) turned(to, v);
      return finish(part.out, at, to);
    }
    for (int v = 0; v < s.vectors; ++v) {
      const int first = v * s.lanes, second = s.stride + first;
      const Vec<T> n = normalized(first, i);
      if (!kRope) {
        write(to, 0, v, n);
        if (s.count == 2) write(to, 1, v, normalized(second, i));
      } else if (s.count == 1) {
        write(to, 0, v, fma(n, load(cos.v + first), Vec<T>(swapped(n) * load(sin.v + first))));
      } else {
        const Vec<T> m = normalized(second, i);
        write(to, 0, v, fma(n, load(cos.v + first), Vec<T>(m * load(sin.v + first))));
        write(to, 1, v, fma(m, load(cos.v + second), Vec<T>(n * load(sin.v + second))));
      }
    }
    finish(part.out, at, to);
  }

  // The gradient in the normed row (turned back), of vector v, added to what the weights and biases want; then scaled.
  void back(const Vec<T>& dn, int at, int i, bool sums, Vec<T>& along, Vec<T>& total) {
    const Vec<T> unit = (load(x.v + at) - all(mean)) * all(rstd) * load(keep.v + at);
    store(x.v + at, unit);
    if (sums) {
      store(to_weight.v + at, fma(dn, unit, load(to_weight.v + at)));
      store(to_bias.v + at, Vec<T>(load(to_bias.v + at) + dn));
    }
    const Vec<T> scaled = dn * load(weight[i].v + at);
    store(g.v + at, scaled);
    along = fma(scaled, unit, along);
    total += scaled;
  }
  template <bool kRope>
  void backward(const HeadPart& part, int i, std::int64_t from, std::int64_t at, std::int64_t to_at, bool sums) {
    statistics(read(part.x, from, g));
    const Row r = read(part.grad, at, a);
    Vec<T> along{}, total{};
    if (kRope && split) {
      for (int v = 0; v < s.vectors; ++v)
        store(turns.v + v * s.lanes, Vec<T>(vector(r, 0, v) * load(sin.v + v * s.lanes)));
      exchange();
    }
    for (int v = 0; v < s.vectors; ++v) {
      const int first = v * s.lanes, second = s.stride + first;
      const Vec<T> d = vector(r, 0, v);
      if (!kRope) {
        back(d, first, i, sums, along, total);
        if (s.count == 2) back(vector(r, 1, v), second, i, sums, along, total);
      } else if (s.count == 1) {
        const Vec<T> along_pair = split ? load(others.v + first) : swapped(Vec<T>(d * load(sin.v + first)));
        back(fma(d, load(cos.v + first), along_pair), first, i, sums, along, total);
      } else {
        const Vec<T> e = vector(r, 1, v);
        const Vec<T> dn = fma(d, load(cos.v + first), Vec<T>(e * load(sin.v + second)));
        const Vec<T> en = fma(e, load(cos.v + second), Vec<T>(d * load(sin.v + first)));
        back(dn, first, i, sums, along, total);
        back(en, second, i, sums, along, total);
      }
    }
    if (!part.out.data) return;
    const bool none = p.norm == HeadNorm::none;
    const T slope = none ? T(0) : static_cast<T>(add_lanes(along) / p.dim);
    const T level = p.norm == HeadNorm::layer ? static_cast<T>(add_lanes(total) / p.dim) : T(0);
    T* const to = direct(part.out, to_at);
    for (int k = 0; k < s.count; ++k)
      for (int v = 0; v < s.vectors; ++v) {
        const int j = k * s.stride + v * s.lanes;
        const Vec<T> rest = load(g.v + j) - all(level) - load(x.v + j) * all(slope);
        write(to, k, v, rest * all(rstd));
      }
    finish(part.out, to_at, to);
  }

  void copy(const HeadTensor& from, std::int64_t at, const HeadTensor& to, std::int64_t to_at) {
    const Row r = read(from, at, x);
    T* const direct_to = direct(to, to_at);
    for (int k = 0; k < s.count; ++k)
      for (int v = 0; v < s.vectors; ++v) write(direct_to, k, v, vector(r, k, v));
    finish(to, to_at, direct_to);
  }
};

inline std::int64_t place_of(const HeadTensor& t, std::int64_t b, std::int64_t h, std::int64_t token) {
  return b * t.batch + h * t.head + token * t.token;
}

template <typename T, bool kRope>
void run_tokens(const HeadsPlan& p, std::int64_t begin, std::int64_t end, double* sums) {
  Token<T> token(p);
  const auto& s = token.s;
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t b = row / p.tokens, t = row % p.tokens;
    if (kRope && (row == begin || p.tokens > 1 || p.table_batch)) token.turn(b, t);
    for (int i = 0; i < p.parts; ++i) {
      const HeadPart& part = p.part[i];
      if (part.plain) {
        const HeadTensor& from = p.backward ? part.grad : part.x;
        for (std::int64_t h = 0; h < part.heads && part.out.data; ++h)
          token.copy(from, place_of(from, b, h, t), part.out, place_of(part.out, b, h, t));
        continue;
      }
      if (!p.backward) {
        for (std::int64_t h = 0; h < part.heads; ++h)
          token.template forward<kRope>(part, i, place_of(part.x, b, h, t), place_of(part.out, b, h, t));
        continue;
      }
      if (sums)
        for (int j = 0; j < s.count * s.stride; ++j) token.to_weight.v[j] = token.to_bias.v[j] = T(0);
      for (std::int64_t h = 0; h < part.heads; ++h)
        token.template backward<kRope>(part, i, place_of(part.x, b, h, t), place_of(part.grad, b, h, t),
                                       place_of(part.out, b, h, t), sums != nullptr);
      if (!sums) continue;
      double* const to = sums + i * 2 * p.dim;
      for (int j = 0; j < p.dim; ++j) {
        to[j] += static_cast<double>(token.to_weight.v[s.at(j)]);
        to[p.dim + j] += static_cast<double>(token.to_bias.v[s.at(j)]);
      }
    }
  }
}

}  // namespace

void heads_run(const HeadsPlan& p, std::int64_t begin, std::int64_t end, double* sums) {
  if (p.wide)
    return p.cos ? run_tokens<double, true>(p, begin, end, sums) : run_tokens<double, false>(p, begin, end, sums);
  if (p.cos) return run_tokens<float, true>(p, begin, end, sums);
  run_tokens<float, false>(p, begin, end, sums);
}

}  // namespace fokker::cpu::FK_ISA
