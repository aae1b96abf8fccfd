// kernels/cuda/gemm_cache.h: measured choices of the library's algorithms, kept on disk from one run to the next.
// Refuses to know: CUDA, how an algorithm is measured or used. Thread: any. Neighbours: gemm_library.cc; gemm_cache_test.cc needs no GPU.
//
// One text file for each library version and GPU: a line that says what it is, then a line for each key. It is replaced as a whole, by
// a rename. A file that is damaged, or says another version, counts as empty; a folder that cannot be written is no error.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>

#include "kernels/cuda/gemm_config.h"

namespace phalanx::kernels::cuda {

using AlgorithmBits = std::array<uint64_t, 8>;  // cublasLtMatmulAlgo_t
using KnownAlgorithms = std::map<LibraryKey, AlgorithmBits>;

// The folder: PHALANX_CACHE_DIR, else XDG_CACHE_HOME/phalanx, else HOME/.cache/phalanx; empty if none is set.
std::string CacheFolder();

// What a file must say to be believed: format, library, GPU.
std::string AlgorithmsTitle(uint64_t library_version, const std::string& gpu);
// The file's name in CacheFolder; empty if there is no folder.
std::string AlgorithmsPath(uint64_t library_version, const std::string& gpu);

// Empty if there is no such file, or it is damaged, or has another title.
KnownAlgorithms ReadAlgorithms(const std::string& path, const std::string& title);
// Makes the folder if need be. False: the disk would not.
bool WriteAlgorithms(const std::string& path, const std::string& title, const KnownAlgorithms& algorithms);

}  // namespace phalanx::kernels::cuda
