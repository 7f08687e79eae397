// Density sums on the CPU (common/kde_sums.h): the driver, which packs, splits over threads and merges.
#pragma once

#include "common/kde_sums.h"

namespace fokker::cpu {
template <typename T> void kde_sums(const KdeSums& call);
}
