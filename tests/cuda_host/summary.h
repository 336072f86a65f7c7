// The emulator's findings in words.
#pragma once

#include <string>

#include "emulator.h"

namespace affnet::emulator {

// The findings as "key=value ...", and the first one as a sentence.
inline const char* summary(const Report& report) {
  static std::string text;
  int64_t counted = 0, ideal = 0;
  for (const auto& [line, wavefronts] : report.banks) counted += wavefronts.counted, ideal += wavefronts.ideal;
  text = "races=" + std::to_string(report.races) + " uninitialised=" + std::to_string(report.uninitialised) +
         " out_of_bounds=" + std::to_string(report.out_of_bounds) + " misaligned=" + std::to_string(report.misaligned) +
         " stuck=" + std::to_string(report.stuck) + " wavefronts=" + std::to_string(counted) +
         " ideal=" + std::to_string(ideal) + ";" + report.first;
  return text.c_str();
}

}  // namespace affnet::emulator
