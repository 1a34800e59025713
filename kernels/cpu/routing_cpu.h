// What the CPU keeps between router and experts.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/moe.h"
#include "kernels/route.h"

namespace moebius {

template <>
class Routing<Cpu> {
 public:
  ExpertGroups groups;

  // Scratch room of the operators.
  std::vector<float> logits;
  ExpertWorkspace workspace;
  std::vector<ExpertView> experts;
  std::vector<uint8_t> begun;  // [row] 1: it is in some group
};

}  // namespace moebius
