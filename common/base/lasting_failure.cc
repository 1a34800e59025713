#include "common/base/lasting_failure.h"

#include <utility>

#include "absl/strings/cord.h"

namespace moebius {
namespace {

constexpr char kMark[] = "moebius/lasting";

}  // namespace

absl::Status Lasting(absl::Status status) {
  if (!status.ok()) status.SetPayload(kMark, absl::Cord("1"));
  return status;
}

absl::Status LastingIfOfInput(absl::Status status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
      return Lasting(std::move(status));
    default:
      return status;
  }
}

bool IsLasting(const absl::Status& status) {
  return status.GetPayload(kMark).has_value();
}

}  // namespace moebius
