// FNV-1a (Fowler, Noll, Vo), 64 bits: a quick hash for comparing what two
// processes hold. Not for anything hostile.
#pragma once

#include <cstdint>

namespace moebius {

class Fnv1a {
 public:
  // A byte, or a whole word at once; the two give different hashes.
  void Add(uint64_t word) { hash_ = (hash_ ^ word) * 1099511628211u; }
  uint64_t hash() const { return hash_; }

 private:
  uint64_t hash_ = 14695981039346656037u;
};

}  // namespace moebius
