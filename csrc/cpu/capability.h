// Which variant of the CPU kernel runs on this machine.
#pragma once

namespace affnet {

const char* cpu_capability();  // "baseline", "avx2" or "avx512"

}  // namespace affnet
