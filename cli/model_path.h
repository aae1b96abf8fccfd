// cli/model_path.h: a MODEL as typed -> the folder or .gguf file on this machine.
// Refuses to know: what is in the files, beyond which ones are there. Thread: any. Nothing is ever downloaded.
// Neighbours: serve.cc resolves MODEL and --tokenizer with it. Source: the cache layout of huggingface_hub, "Understand caching".
#pragma once

#include <string>

#include "services/status.h"

namespace phalanx::cli {

struct ModelPlaces {
  std::string cache;     // folder that holds models--org--name
  std::string revision;  // branch, tag or commit; "" = main
};

// `download_dir` if given, else HF_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME/huggingface/hub or ~/.cache/huggingface/hub.
std::string CacheFolder(const std::string& download_dir);

enum class ModelKind { kFolder, kGguf };  // a tokenizer.json counts as a folder

struct ModelPath {
  std::string path;
  ModelKind kind = ModelKind::kFolder;
};

enum class Wanted { kModel, kTokenizer };

// A folder that holds config.json (of a tokenizer: tokenizer.json) is taken whatever its name; one that holds a single .gguf stands for
// that file; a folder of the cache stands for its snapshot. What is not on the disk is looked up in the cache as org/name.
// Errors: kNotFound or kInvalidArgument: one sentence that names `typed` and says where was looked.
absl::StatusOr<ModelPath> ResolveModel(const std::string& typed, const ModelPlaces& places, Wanted wanted);

}  // namespace phalanx::cli
