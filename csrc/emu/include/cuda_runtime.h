// Stands in for the CUDA header of this name when g++ compiles a .cu file.
#pragma once
#include "emu/cuda_emu.h"
