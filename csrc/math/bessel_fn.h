// Names of the log-Bessel functions, shared by every regime kernel.
#pragma once

namespace fokker::math {

// iv_ratio = I_{v+1}(x) / I_v(x), kv_ratio = K_{v+1}(x) / K_v(x).
enum class Fn : int { log_iv, log_ive, log_kv, log_kve, iv_ratio, kv_ratio };

constexpr int kFnCount = 6;

}  // namespace fokker::math
