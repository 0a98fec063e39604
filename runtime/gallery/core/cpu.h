// The instruction sets that kernels are written for, and which of them this CPU and this system can run.
#pragma once

#include <string>
#include <vector>

namespace chan {

// Names of the usable instruction sets, best first; "generic", plain C++, is always the last.
std::vector<std::string> usable_instruction_sets();

}  // namespace chan
