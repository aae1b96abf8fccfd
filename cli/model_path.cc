#include "cli/model_path.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace phalanx::cli {
namespace {

namespace fs = std::filesystem;

bool IsFolder(const fs::path& path) {
  std::error_code error;
  return fs::is_directory(path, error);
}
bool IsFile(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}
bool IsReadable(const fs::path& path) { return std::ifstream(path, std::ios::binary).good(); }

// By content too: a cache may store the file under its hash.
bool IsGguf(const fs::path& path) {
  if (absl::EndsWithIgnoreCase(path.string(), ".gguf")) return true;
  char magic[4] = {};
  std::ifstream(path, std::ios::binary).read(magic, sizeof(magic));
  return std::string_view(magic, sizeof(magic)) == "GGUF";
}

std::vector<std::string> GgufFiles(const fs::path& folder) {
  std::vector<std::string> out;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    if (IsFile(at->path()) && absl::EndsWithIgnoreCase(at->path().string(), ".gguf")) out.push_back(at->path().filename().string());
  }
  std::sort(out.begin(), out.end());
  return out;
}

// The snapshot of a folder of the cache (models--org--name); nullopt if it has none of that revision.
std::optional<fs::path> Snapshot(const fs::path& folder, const std::string& revision) {
  std::string commit = revision;
  std::ifstream ref(folder / "refs" / revision);
  if (ref) {
    std::getline(ref, commit);
    commit = std::string(absl::StripAsciiWhitespace(commit));
  }
  const fs::path snapshot = folder / "snapshots" / commit;
  if (commit.empty() || commit.find('/') != std::string::npos || !IsFolder(snapshot)) return std::nullopt;
  return snapshot;
}

absl::StatusOr<ModelPath> FromFolder(const std::string& typed, const fs::path& folder, const std::string& revision, Wanted wanted) {
  const char* needed = wanted == Wanted::kModel ? "config.json" : "tokenizer.json";
  if (IsFile(folder / needed)) {
    if (!IsReadable(folder / needed)) return absl::PermissionDeniedError(absl::StrCat("'", typed, "': ", needed, " cannot be read"));
    return ModelPath{folder.string(), ModelKind::kFolder};
  }
  const std::vector<std::string> files = GgufFiles(folder);
  if (files.size() == 1) return ModelPath{(folder / files[0]).string(), ModelKind::kGguf};
  if (files.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", typed, "' holds several .gguf files; name one of them: ", absl::StrJoin(files, ", ")));
  }
  if (IsFolder(folder / "snapshots")) {
    const std::optional<fs::path> snapshot = Snapshot(folder, revision);
    if (snapshot) return FromFolder(typed, *snapshot, revision, wanted);
    return absl::NotFoundError(absl::StrCat("'", typed, "' is in the cache, but not its revision '", revision, "'"));
  }
  return absl::NotFoundError(absl::StrCat("'", typed, "' is a folder with neither ", needed, " nor a .gguf file"));
}

// "name" or "org/name", of the letters that the hub allows.
bool IsRepository(const std::string& typed) {
  const std::vector<std::string> parts = absl::StrSplit(typed, '/');
  if (parts.size() > 2) return false;
  return std::all_of(parts.begin(), parts.end(), [](const std::string& part) {
    return !part.empty() && part[0] != '.' && part[0] != '-' && std::all_of(part.begin(), part.end(), [](unsigned char c) {
      return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
    });
  });
}

std::string Env(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

std::string CacheFolder(const std::string& download_dir) {
  if (!download_dir.empty()) return download_dir;
  if (const std::string hub = Env("HF_HUB_CACHE"); !hub.empty()) return hub;
  if (const std::string home = Env("HF_HOME"); !home.empty()) return home + "/hub";
  if (const std::string cache = Env("XDG_CACHE_HOME"); !cache.empty()) return cache + "/huggingface/hub";
  return Env("HOME") + "/.cache/huggingface/hub";
}

absl::StatusOr<ModelPath> ResolveModel(const std::string& typed, const ModelPlaces& places, Wanted wanted) {
  const std::string revision = places.revision.empty() ? "main" : places.revision;
  if (IsFolder(typed)) return FromFolder(typed, typed, revision, wanted);
  if (IsFile(typed)) {
    if (!IsReadable(typed)) return absl::PermissionDeniedError(absl::StrCat("'", typed, "' cannot be read"));
    if (IsGguf(typed)) return ModelPath{typed, ModelKind::kGguf};
    if (wanted == Wanted::kTokenizer && absl::EndsWith(typed, ".json")) return ModelPath{typed, ModelKind::kFolder};
    return absl::InvalidArgumentError(absl::StrCat("'", typed, "' is a file, but not a .gguf one; give the folder that holds the model"));
  }
  if (!IsRepository(typed)) return absl::NotFoundError(absl::StrCat("there is no folder or .gguf file '", typed, "'"));
  const fs::path folder = fs::path(places.cache) / absl::StrCat("models--", absl::StrReplaceAll(typed, {{"/", "--"}}));
  if (IsFolder(folder)) return FromFolder(typed, folder, revision, wanted);
  return absl::NotFoundError(absl::StrCat("there is no folder or .gguf file '", typed, "', and the Hugging Face cache ", places.cache,
                                          " does not hold it (nothing is downloaded; `hf download ", typed, "` puts it there)"));
}

}  // namespace phalanx::cli
