// Early return on errors: RETURN_IF_ERROR and ASSIGN_OR_RETURN.
//
//   RETURN_IF_ERROR(DoIt());
//   ASSIGN_OR_RETURN(auto value, Compute());
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define MOEBIUS_CONCAT_INNER(a, b) a##b
#define MOEBIUS_CONCAT(a, b) MOEBIUS_CONCAT_INNER(a, b)

#define RETURN_IF_ERROR(expr)                        \
  do {                                               \
    ::absl::Status moebius_status = (expr);          \
    if (!moebius_status.ok()) return moebius_status; \
  } while (false)

#define ASSIGN_OR_RETURN(lhs, expr) \
  MOEBIUS_ASSIGN_OR_RETURN(MOEBIUS_CONCAT(moebius_or_, __LINE__), lhs, expr)

#define MOEBIUS_ASSIGN_OR_RETURN(var, lhs, expr) \
  auto var = (expr);                             \
  if (!var.ok()) return std::move(var).status(); \
  lhs = *std::move(var)
