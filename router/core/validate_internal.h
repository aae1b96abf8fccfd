// router/core/validate_internal.h: the sampling half of Validate, apart from the request half.
// Refuses to know: JSON, protobuf. Thread: pure functions. Neighbours: validate.cc calls it; nobody else includes it.
#pragma once

#include "router/core/validate.h"

namespace phalanx::router::core {

absl::StatusOr<ValidSampling> ValidateSampling(const Draft& draft, const Limits& limits);

}  // namespace phalanx::router::core
