// What an operator asks of a group under a name of his own, so that he may ask
// again and hear what became of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "common/base/ids.h"
#include "common/config/config.h"

namespace moebius {

inline constexpr size_t kMaxOperationIdBytes = 128;
inline constexpr size_t kMaxOperationAnswerBytes = 16384;
// That are remembered; the oldest one that has ended is forgotten for a new
// one.
inline constexpr size_t kMaxOperations = 64;

enum class OperationKind { kLayout, kDrain, kUndrain };

struct Operation {
  std::string id;
  OperationKind kind = OperationKind::kLayout;
  LayoutChoice choice = LayoutChoice::kEp;  // only of kLayout
  friend bool operator==(const Operation&, const Operation&) = default;
};

// How it was answered: whoever asks again is answered so too.
struct OperationEnd {
  int http_status = 200;
  std::string answer;  // JSON
  int64_t unix_ms = 0;
  friend bool operator==(const OperationEnd&, const OperationEnd&) = default;
};

struct KnownOperation {
  Operation operation;
  int64_t began_unix_ms = 0;
  Epoch decided;  // the last switch that was decided before it began
  std::optional<OperationEnd> end;  // nothing: it runs
  friend bool operator==(const KnownOperation&,
                         const KnownOperation&) = default;
};

}  // namespace moebius
