// worker/model/dummy.h: made-up weights, for tests of shapes and speed without weight files (--load-format dummy).
// Refuses to know: layers, files, devices. Thread: immutable after construction; any thread reads.
// Neighbours: checkpoint.cc gives them out under every name that is asked for.
//
// One block of uniform values in [-0.02, 0.02), always the same, repeats without end; a tensor begins at a place that its name decides. The
// period is a prime, so no two rows of a matrix are equal. Norm weights are 1. Activations of any depth stay finite: each layer adds a
// small product of a normalised row.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "kernels/kernels.h"

namespace phalanx::worker::model {

class DummyValues {
 public:
  DummyValues();
  // The place of a tensor's first value; kOnes for a norm weight.
  static constexpr uint64_t kOnes = UINT64_MAX;
  static uint64_t PlaceOf(std::string_view tensor);
  // Writes values [at, at + count) of the tensor at `place` as `dtype` (kBF16 or kF32; the same values in both).
  void Copy(uint64_t place, uint64_t at, uint64_t count, kernels::DType dtype, void* out) const;

 private:
  static constexpr uint64_t kPeriod = (uint64_t{1} << 18) + 3;   // prime; as bf16 it lies in a core's own cache
  std::vector<uint16_t> bf16_;
  std::vector<float> f32_;
};

}  // namespace phalanx::worker::model
