#include "services/options.h"

#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include <gtest/gtest.h>

namespace phalanx::services {
namespace {

struct Fields {
  int port = 8000;
  std::string host = "0.0.0.0";
  bool cache = true;
  double share = 0.9;
  int64_t length = 0;
  std::vector<std::string> names = {"a"};
  std::optional<int64_t> limit;
  std::string key;
};

struct Case {
  Fields fields;
  OptionSet options{"thing", "[flags]", "Does a thing."};
  Case() {
    options.Group("Server");
    options.Add("port", &fields.port, "where to listen", {.min = 0, .max = 65535});
    options.Add("host", &fields.host, "the address", {.choices = {"0.0.0.0", "localhost"}});
    options.Group("Other things");
    options.Add("use-cache", &fields.cache, "keep what was read");
    options.Add("share", &fields.share, "share of memory", {.min = 0, .max = 1});
    options.Add("max-length", &fields.length, "longest", {.alias = "-ml", .unit = "bytes", .min = 0, .suffixes = true});
    options.Add("names", &fields.names, "names");
    options.Add("limit", &fields.limit, "limit");
    options.Add("key", &fields.key, "key", {.env = "PHALANX_OPTIONS_TEST_KEY", .secret = true});
    options.AllowConfigFile();
    options.AllowPositional(1);
  }
  std::string Error(const std::vector<std::string>& words) { return std::string(options.Parse(words).message()); }
};

std::string TempFile(const std::string& text) {
  std::string path = ::testing::TempDir() + "options_test_XXXXXX";
  close(mkstemp(path.data()));
  std::ofstream(path) << text;
  return path;
}

TEST(Options, ReadsEverySpelling) {
  Case c;
  ASSERT_EQ(c.Error({"model", "--port", "1", "--host=localhost", "--no-use-cache", "-ml", "4k", "--names", "x", "y", "--limit=-5", "--share", "0.5"}), "");
  EXPECT_EQ(c.fields.port, 1);
  EXPECT_EQ(c.fields.host, "localhost");
  EXPECT_FALSE(c.fields.cache);
  EXPECT_EQ(c.fields.length, 4000);
  EXPECT_EQ(c.fields.names, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(c.fields.limit, -5);
  EXPECT_EQ(c.fields.share, 0.5);
  EXPECT_EQ(c.options.positional(), std::vector<std::string>{"model"});
  EXPECT_TRUE(c.options.given("port"));
  EXPECT_FALSE(c.options.given("key"));
}

TEST(Options, UnderscoresAndRepeats) {
  Case c;
  ASSERT_EQ(c.Error({"--max_length", "1", "--max-length", "2", "--names=p", "--names=q r"}), "");
  EXPECT_EQ(c.fields.length, 2);
  EXPECT_EQ(c.fields.names, (std::vector<std::string>{"p", "q r"}));
}

TEST(Options, ErrorsNameTheFlag) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"--prot", "1"}, "unknown flag --prot; did you mean --port?"},
      {{"--entirely-different-thing"}, "unknown flag --entirely-different-thing"},
      {{"--port"}, "--port needs a value"},
      {{"--port", "--host"}, "--port needs a value"},
      {{"--port", "x"}, "--port: 'x' is not a whole number"},
      {{"--port", "70000"}, "--port: '70000' is not between 0 and 65535"},
      {{"--port=-1"}, "--port: '-1' is not between 0 and 65535"},
      {{"--share", "nan"}, "--share: 'nan' is not a number"},
      {{"--host", "example"}, "--host: 'example' is not one of 0.0.0.0, localhost"},
      {{"--use-cache=maybe"}, "--use-cache: 'maybe' is not true or false"},
      {{"--no-use-cache=1"}, "--no-use-cache takes no value"},
      {{"--max-length", "9223372036854775808"}, "--max-length: '9223372036854775808' is not a whole number"},
      {{"--max-length", "9223372036854775807K"}, "--max-length: '9223372036854775807K' is out of range"},
      {{"a", "b"}, "unexpected argument 'b'"},
      {{"--config"}, "--config needs a file"},
      {{"--config", "/nowhere/at/all"}, "--config: cannot read '/nowhere/at/all'"},
  };
  for (const auto& [words, error] : cases) {
    Case c;
    EXPECT_EQ(c.Error(words), error);
  }
}

TEST(Options, FlagBeatsEnvironmentBeatsFile) {
  const std::string path = TempFile("port: 1\nshare: 0.25\nuse_cache: false\nnames: [m, n]\nkey: file\n");
  setenv("PHALANX_OPTIONS_TEST_KEY", "environment", 1);
  Case c;
  ASSERT_EQ(c.Error({"--port", "2", "--config", path}), "");
  EXPECT_EQ(c.fields.port, 2);
  EXPECT_EQ(c.fields.share, 0.25);
  EXPECT_FALSE(c.fields.cache);
  EXPECT_EQ(c.fields.names, (std::vector<std::string>{"m", "n"}));
  EXPECT_EQ(c.fields.key, "environment");
  Case d;
  ASSERT_EQ(d.Error({"--key", "flag"}), "");
  EXPECT_EQ(d.fields.key, "flag");
  unsetenv("PHALANX_OPTIONS_TEST_KEY");
  unlink(path.c_str());
}

TEST(Options, ConfigFileErrors) {
  for (const auto& [text, part] : std::vector<std::pair<std::string, std::string>>{
           {"prot: 1", "unknown flag prot in "}, {"port: [1, 2]", "not a plain value"}, {"- 1\n- 2", "not a list of `name: value`"},
           {"port: {", "--config: '"}, {"port: x", "'x' is not a whole number"}}) {
    const std::string path = TempFile(text);
    Case c;
    EXPECT_NE(c.Error({"--config", path}).find(part), std::string::npos) << text;
    unlink(path.c_str());
  }
  const std::string json = TempFile(R"({"port": 7, "names": ["z"], "limit": null})");
  Case c;
  ASSERT_EQ(c.Error({"--config=" + json}), "");
  EXPECT_EQ(c.fields.port, 7);
  EXPECT_FALSE(c.fields.limit.has_value());
  unlink(json.c_str());
}

TEST(Options, HelpIsGroupedWithDefaultsAndUnits) {
  Case c;
  c.fields.key = "secret-value";
  const std::string help = c.options.Help();
  for (const char* part : {"Usage: thing [flags]", "Server:\n  --port VALUE", "(default: 8000)", "--use-cache, --no-use-cache", "(default: on)",
                           "--max-length, -ml BYTES", "(in bytes; default: 0)", "environment: PHALANX_OPTIONS_TEST_KEY", "--config FILE", "{0.0.0.0,localhost}"}) {
    EXPECT_NE(help.find(part), std::string::npos) << part << "\n" << help;
  }
  EXPECT_EQ(help.find("secret-value"), std::string::npos);
  EXPECT_EQ(c.Error({"--port", "9", "--help", "--nonsense"}), "");
  EXPECT_TRUE(c.options.help_requested());
}

TEST(Options, SecretsAreNotQuoted) {
  std::optional<int64_t> pin;
  OptionSet options("thing", "", "");
  options.Add("pin", &pin, "a pin", {.secret = true});
  EXPECT_EQ(options.Parse({"--pin", "hunter2"}).message(), "--pin: the value is not a whole number");
}

TEST(ParseInteger, Suffixes) {
  EXPECT_EQ(*ParseInteger("4k", true), 4000);
  EXPECT_EQ(*ParseInteger("4K", true), 4096);
  EXPECT_EQ(*ParseInteger("2GiB", true), int64_t{2} << 30);
  EXPECT_EQ(*ParseInteger("1.5GiB", true), int64_t{3} << 29);
  EXPECT_FALSE(ParseInteger("4k", false).ok());
  EXPECT_FALSE(ParseInteger("1.5", true).ok());
  EXPECT_FALSE(ParseInteger("", true).ok());
  EXPECT_FALSE(ParseInteger("4x", true).ok());
  EXPECT_FALSE(ParseInteger("99999999999999T", true).ok());
}

TEST(EditDistance, CountsEdits) {
  EXPECT_EQ(EditDistance("port", "prot"), 2u);
  EXPECT_EQ(EditDistance("", "abc"), 3u);
  EXPECT_EQ(EditDistance("same", "same"), 0u);
}

}  // namespace
}  // namespace phalanx::services
