#include "cli/model_path.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace phalanx::cli {
namespace {

namespace fs = std::filesystem;

class ModelPathTest : public ::testing::Test {
 protected:
  ModelPathTest() {
    std::string base = ::testing::TempDir() + "model_path_XXXXXX";
    root_ = mkdtemp(base.data());
  }
  ~ModelPathTest() override { fs::remove_all(root_); }

  std::string Put(const std::string& path, const std::string& text = "x") {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
    return (root_ / path).string();
  }
  std::string At(const std::string& path) const { return (root_ / path).string(); }
  // The path relative to the root, or the error.
  std::string Resolve(const std::string& typed, const std::string& revision = "", Wanted wanted = Wanted::kModel) const {
    const auto found = ResolveModel(typed, {At("hub"), revision}, wanted);
    return found.ok() ? fs::relative(found->path, root_).string() : std::string(found.status().message());
  }
  fs::path root_;
};

TEST_F(ModelPathTest, AFolderWhateverItsName) {
  Put("hub/models--DeepSeek-R1-Distill-Qwen-1.5B/config.json");
  EXPECT_EQ(Resolve(At("hub/models--DeepSeek-R1-Distill-Qwen-1.5B")), "hub/models--DeepSeek-R1-Distill-Qwen-1.5B");
  EXPECT_EQ(Resolve("DeepSeek-R1-Distill-Qwen-1.5B"), "hub/models--DeepSeek-R1-Distill-Qwen-1.5B");
}

TEST_F(ModelPathTest, AGgufFile) {
  const std::string file = Put("m/a.gguf");
  EXPECT_EQ(Resolve(file), "m/a.gguf");
  EXPECT_EQ(Resolve(At("m")), "m/a.gguf");
  EXPECT_EQ(ResolveModel(file, {}, Wanted::kModel)->kind, ModelKind::kGguf);
  EXPECT_EQ(Resolve(Put("blobs/0a1b", "GGUF....")), "blobs/0a1b");
  Put("m/b.gguf");
  EXPECT_EQ(Resolve(At("m")), absl::StrCat("'", At("m"), "' holds several .gguf files; name one of them: a.gguf, b.gguf"));
}

TEST_F(ModelPathTest, TheCache) {
  Put("hub/models--org--name/refs/main", "abc\n");
  Put("hub/models--org--name/refs/v2", "def");
  Put("hub/models--org--name/snapshots/abc/config.json");
  Put("hub/models--org--name/snapshots/def/config.json");
  EXPECT_EQ(Resolve("org/name"), "hub/models--org--name/snapshots/abc");
  EXPECT_EQ(Resolve("org/name", "v2"), "hub/models--org--name/snapshots/def");
  EXPECT_EQ(Resolve("org/name", "def"), "hub/models--org--name/snapshots/def");
  EXPECT_EQ(Resolve(At("hub/models--org--name")), "hub/models--org--name/snapshots/abc");
  EXPECT_EQ(Resolve("org/name", "v3"), "'org/name' is in the cache, but not its revision 'v3'");
  EXPECT_EQ(Resolve("org/name", ".."), "'org/name' is in the cache, but not its revision '..'");
  Put("hub/models--org--quants/refs/main", "1");
  Put("hub/models--org--quants/snapshots/1/q.gguf");
  EXPECT_EQ(Resolve("org/quants"), "hub/models--org--quants/snapshots/1/q.gguf");
}

TEST_F(ModelPathTest, ATokenizerNeedsNoConfig) {
  Put("t/tokenizer.json");
  EXPECT_EQ(Resolve(At("t"), "", Wanted::kTokenizer), "t");
  EXPECT_EQ(Resolve(At("t/tokenizer.json"), "", Wanted::kTokenizer), "t/tokenizer.json");
  EXPECT_EQ(Resolve(At("t")), absl::StrCat("'", At("t"), "' is a folder with neither config.json nor a .gguf file"));
}

TEST_F(ModelPathTest, ErrorsNameWhatWasTyped) {
  EXPECT_EQ(Resolve("/no/such/model"), "there is no folder or .gguf file '/no/such/model'");
  EXPECT_EQ(Resolve("../x"), "there is no folder or .gguf file '../x'");
  EXPECT_EQ(Resolve("a/b/c"), "there is no folder or .gguf file 'a/b/c'");
  EXPECT_EQ(Resolve("org/other").find("there is no folder or .gguf file 'org/other', and the Hugging Face cache " + At("hub")), 0u);
  const std::string file = Put("m/model.bin");
  EXPECT_EQ(Resolve(file), absl::StrCat("'", file, "' is a file, but not a .gguf one; give the folder that holds the model"));
}

TEST(CacheFolder, FollowsTheHubsVariables) {
  for (const char* name : {"HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"}) unsetenv(name);
  setenv("HOME", "/home/me", 1);
  EXPECT_EQ(CacheFolder(""), "/home/me/.cache/huggingface/hub");
  setenv("XDG_CACHE_HOME", "/xdg", 1);
  EXPECT_EQ(CacheFolder(""), "/xdg/huggingface/hub");
  setenv("HF_HOME", "/hf", 1);
  EXPECT_EQ(CacheFolder(""), "/hf/hub");
  setenv("HF_HUB_CACHE", "/hub", 1);
  EXPECT_EQ(CacheFolder(""), "/hub");
  EXPECT_EQ(CacheFolder("/d"), "/d");
}

}  // namespace
}  // namespace phalanx::cli
