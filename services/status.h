// services/status.h: the error vocabulary: macros over absl::Status.
// Refuses to know: gRPC, HTTP, any domain. Thread: any. Neighbours: every room includes this.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define PHX_CONCAT_INNER(a, b) a##b
#define PHX_CONCAT(a, b) PHX_CONCAT_INNER(a, b)

// Returns from the enclosing function if `expr` (an absl::Status) is not OK.
#define PHX_RETURN_IF_ERROR(expr)                    \
  do {                                               \
    absl::Status phx_status_ = (expr);               \
    if (!phx_status_.ok()) return phx_status_;       \
  } while (false)

// Evaluates `expr` (an absl::StatusOr<T>), returns its status on error, else moves the value into `lhs`.
//   PHX_ASSIGN_OR_RETURN(auto file, MappedFile::Open(path));
#define PHX_ASSIGN_OR_RETURN(lhs, expr) PHX_ASSIGN_OR_RETURN_IMPL(PHX_CONCAT(phx_statusor_, __LINE__), lhs, expr)
#define PHX_ASSIGN_OR_RETURN_IMPL(tmp, lhs, expr) \
  auto tmp = (expr);                              \
  if (!tmp.ok()) return std::move(tmp).status();  \
  lhs = *std::move(tmp)
