#include "worker/model/rope.h"

#include <cmath>
#include <numbers>

#include "worker/model/convert.h"

namespace phalanx::worker::model {
namespace {

// Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between blended.
float Llama3Frequency(const ModelConfig& config, float frequency) {
  const auto original = static_cast<float>(config.rope_original_max_position);
  const auto factor = static_cast<float>(config.rope_factor);
  const auto low = static_cast<float>(config.rope_low_freq_factor);
  const auto high = static_cast<float>(config.rope_high_freq_factor);
  const float wavelength = 2.0f * std::numbers::pi_v<float> / frequency;
  if (wavelength > original / low) return frequency / factor;
  if (wavelength < original / high) return frequency;
  const float smooth = (original / wavelength - low) / (high - low);
  return (1.0f - smooth) * (frequency / factor) + smooth * frequency;
}

}  // namespace

std::vector<float> InverseFrequencies(const ModelConfig& config) {
  const int32_t half = config.head_dim / 2;
  std::vector<float> out(half);
  for (int32_t i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(config.head_dim);
    float frequency = 1.0f / static_cast<float>(std::pow(config.rope_theta, static_cast<double>(exponent)));
    if (config.rope_scaling == RopeScaling::kLinear) frequency /= static_cast<float>(config.rope_factor);
    if (config.rope_scaling == RopeScaling::kLlama3) frequency = Llama3Frequency(config, frequency);
    if (!config.rope_freq_divisors.empty()) frequency /= config.rope_freq_divisors[i];
    out[i] = frequency;
  }
  return out;
}

void FillRopeRow(const std::vector<float>& inverse_frequencies, int32_t position, kernels::DType dtype, float* out) {
  const size_t half = inverse_frequencies.size();
  for (size_t i = 0; i < half; ++i) {
    const float angle = static_cast<float>(position) * inverse_frequencies[i];
    out[i] = std::cos(angle);
    out[half + i] = std::sin(angle);
  }
  if (dtype != kernels::kBF16) return;
  for (size_t i = 0; i < 2 * half; ++i) out[i] = FromBf16(ToBf16(out[i]));
}

}  // namespace phalanx::worker::model
