// log K_v(x), log(e^x K_v(x)), K_{v+1}/K_v with derivatives for hypot(v, x) < 25 (float: 10), v >= 0, x > 0.
//
//   k_temme<F, Order>(v, x, out)   where k_uses_series(v, x)
//   k_large<F, Order>(v, x, out)   elsewhere
// F is log_kv, log_kve or kv_ratio. Order 0 writes the value, 1 (d/dv, d/dx), 2 (d2/dv2, d2/dvdx, d2/dx2).
// Steps >= round(v) bounds the unrolled recurrence (default: all orders below the seam); it does not change the bits.
#pragma once

#include "math/bessel_k_large.h"
#include "math/bessel_k_temme.h"
