// Frames, handshakes and their proofs, the options of a rendezvous, and sums: everything in the room that needs no second rank.
#include "worker/tp/frame.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>

#include "worker/tp/group.h"
#include "worker/tp/hello.h"
#include "worker/tp/reduce.h"
#include "worker/tp/rendezvous.h"
#include "worker/tp/solo_group.h"

namespace phalanx::worker::tp {
namespace {

using ::testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

// Feeds `bytes` in pieces of `piece` and returns what came out, up to the first error.
struct Read {
  std::vector<std::pair<uint64_t, std::string>> frames;
  absl::Status error;
};
Read ReadAll(std::string_view bytes, size_t piece, size_t cap) {
  FrameReader reader(cap);
  Read out;
  Frame frame;
  while (true) {
    const absl::StatusOr<bool> whole = reader.Next(&frame);
    if (!whole.ok()) {
      out.error = whole.status();
      return out;
    }
    if (*whole) {
      out.frames.emplace_back(frame.step, frame.bytes);
      continue;
    }
    if (bytes.empty()) return out;
    EXPECT_GE(reader.missing(), 1u);
    const std::span<char> space = reader.Space();
    EXPECT_FALSE(space.empty());
    const size_t count = std::min({piece, bytes.size(), space.size()});
    std::memcpy(space.data(), bytes.data(), count);
    reader.Commit(count);
    bytes.remove_prefix(count);
  }
}

TEST(Frame, SameWhateverTheCuts) {
  std::string stream;
  std::vector<std::pair<uint64_t, std::string>> wanted;
  std::mt19937 random(1);
  for (const size_t size : {0, 1, 15, 16, 17, 1000, 16384, 65536, 200000, 3}) {
    std::string bytes(size, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    const uint64_t step = random() * 4294967296ull + random();
    wanted.emplace_back(step, bytes);
    stream += FrameBytes({FrameKind::kPlan, step, bytes});
  }
  for (const size_t piece : {1, 2, 15, 16, 17, 1000, 65536, 1 << 20}) {
    const Read read = ReadAll(stream, piece, 1 << 20);
    EXPECT_TRUE(read.error.ok());
    EXPECT_EQ(read.frames, wanted) << piece;
  }
}

TEST(Frame, RefusesWhatIsNone) {
  EXPECT_EQ(ReadAll("GET / HTTP/1.1\r\n\r\n", 5, 1000).error.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(ReadAll(FrameBytes({FrameKind::kPlan, 0, std::string(1001, 'x')}), 100, 1000).error), HasSubstr("1001"));
  EXPECT_TRUE(ReadAll(FrameBytes({FrameKind::kPlan, 0, std::string(1000, 'x')}), 100, 1000).error.ok());
  std::string other = FrameBytes({FrameKind::kHello, 0, "x"});
  other[2] = 9;
  const Read read = ReadAll(other, 100, 1000);
  EXPECT_EQ(read.error.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(read.error), HasSubstr("version 9 there, 1 here"));
}

TEST(Frame, AHeadAloneTakesNoMemory) {
  FrameReader reader(1u << 31);
  const auto head = FrameHead(FrameKind::kPlan, 1, 1u << 31);
  std::memcpy(reader.Space().data(), head.data(), head.size());
  reader.Commit(head.size());
  Frame frame;
  ASSERT_FALSE(*reader.Next(&frame));
  EXPECT_EQ(reader.missing(), size_t{1} << 31);
  EXPECT_LE(reader.Space().size(), 1u << 20);
}

// Random bytes, and random changes of good ones, reach every parser: none may crash, hang or read past its end (the sanitizers look).
TEST(Frame, SurvivesRandomBytes) {
  std::mt19937 random(7);
  const Terms terms = {{"model", "abc"}, {"max_model_len", "4096"}};
  const std::string good = FrameBytes({FrameKind::kHello, 0, HelloBytes({3, 4})}) + FrameBytes({FrameKind::kProof, 0, TermsBytes(terms)}) +
                           FrameBytes({FrameKind::kRefused, 0, StatusBytes(absl::NotFoundError("x"))});
  int parsed = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = round % 2 == 0 ? std::string(random() % 300, '\0') : good;
    if (round % 2 == 0) {
      for (char& c : bytes) c = static_cast<char>(random());
    } else {
      for (int change = static_cast<int>(random() % 4); change > 0; --change) bytes[random() % bytes.size()] = static_cast<char>(random());
      if (random() % 2 == 0) bytes.resize(random() % (bytes.size() + 1));
    }
    for (const auto& [step, inside] : ReadAll(bytes, 1 + random() % 64, 4096).frames) {
      parsed += ParseHello(inside).ok();
      parsed += ParseTerms(inside).ok();
      EXPECT_FALSE(StatusFromBytes(inside).ok());
    }
    (void)ParseHello(bytes);
    (void)ParseTerms(bytes);
    EXPECT_FALSE(StatusFromBytes(bytes).ok());
  }
  EXPECT_GT(parsed, 1000);
}

TEST(Frame, StatusesTravel) {
  const absl::Status sent = absl::AlreadyExistsError("rank 2 is here already");
  EXPECT_EQ(StatusFromBytes(StatusBytes(sent)), sent);
  EXPECT_EQ(Message(StatusFromBytes(StatusBytes(absl::NotFoundError("a\nb\x1b[31m")))), "a?b?[31m");
  EXPECT_EQ(StatusFromBytes("").code(), absl::StatusCode::kUnknown);
  EXPECT_EQ(Message(StatusFromBytes(StatusBytes(absl::NotFoundError(std::string(5000, 'x'))))).size(), 1024u);
}

TEST(Hello, RoundTrip) {
  Hello hello{5, 8, Channel::kPulse};
  FillRandom(hello.session.data(), hello.session.size());
  FillRandom(hello.nonce.data(), hello.nonce.size());
  const absl::StatusOr<Hello> back = ParseHello(HelloBytes(hello));
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->rank, 5);
  EXPECT_EQ(back->size, 8);
  EXPECT_EQ(back->channel, Channel::kPulse);
  EXPECT_EQ(back->session, hello.session);
  EXPECT_EQ(back->nonce, hello.nonce);
  EXPECT_FALSE(ParseHello(HelloBytes(hello) + "x").ok());
  EXPECT_FALSE(ParseHello(HelloBytes(hello).substr(1)).ok());
}

TEST(Hello, TermsNameWhatDiffers) {
  const Terms here = {{"model", "abc"}, {"max_model_len", "4096"}};
  EXPECT_EQ(*ParseTerms(TermsBytes(here)), here);
  EXPECT_TRUE(CompareTerms(here, {{"max_model_len", "4096"}, {"model", "abc"}}, 1).ok());
  EXPECT_EQ(Message(CompareTerms(here, {{"model", "abc"}, {"max_model_len", "2048"}}, 1)), "max_model_len is 4096 here and 2048 at rank 1");
  EXPECT_EQ(Message(CompareTerms(here, {{"model", "abc"}}, 3)), "max_model_len is 4096 here and not given at rank 3");
  EXPECT_EQ(Message(CompareTerms({}, {{"dtype", "f32"}}, 2)), "dtype is not given here and f32 at rank 2");
  EXPECT_FALSE(CheckTerms({{"a", "1"}, {"a", "2"}}).ok());
  EXPECT_FALSE(CheckTerms({{"a", "\n"}}).ok());
  EXPECT_FALSE(CheckTerms({{"a", std::string(513, 'x')}}).ok());
  EXPECT_FALSE(CheckTerms(Terms(65, {"a", "1"})).ok());
}

TEST(Hello, EveryPartOfAProofCounts) {
  const std::string proof = Proof("secret", Side::kFollower, "hello", "nonce", "terms");
  EXPECT_TRUE(SameProof(proof, Proof("secret", Side::kFollower, "hello", "nonce", "terms")));
  EXPECT_FALSE(SameProof(proof, Proof("Secret", Side::kFollower, "hello", "nonce", "terms")));
  EXPECT_FALSE(SameProof(proof, Proof("secret", Side::kLeader, "hello", "nonce", "terms")));
  EXPECT_FALSE(SameProof(proof, Proof("secret", Side::kFollower, "hello!", "nonce", "terms")));
  EXPECT_FALSE(SameProof(proof, Proof("secret", Side::kFollower, "hello", "nonc3", "terms")));
  EXPECT_FALSE(SameProof(proof, Proof("secret", Side::kFollower, "hello", "nonce", "term")));
  EXPECT_FALSE(SameProof(proof, Proof("secret", Side::kFollower, "hell", "ononce", "terms")));
  EXPECT_FALSE(SameProof("", ""));
}

TEST(Options, NodesAndRanks) {
  EXPECT_EQ(RanksOfNode({2, 1}, 8)->first, 4);
  EXPECT_EQ(RanksOfNode({2, 1}, 8)->count, 4);
  EXPECT_EQ(RanksOfNode({1, 0}, 2)->count, 2);
  EXPECT_FALSE(RanksOfNode({3, 0}, 8).ok());
  EXPECT_FALSE(RanksOfNode({2, 2}, 8).ok());
  EXPECT_FALSE(RanksOfNode({2, -1}, 8).ok());
  EXPECT_FALSE(RanksOfNode({0, 0}, 8).ok());
}

TEST(Options, LeaderWorkerSet) {
  using Environment = std::map<std::string, std::string>;
  const auto read = [](const Environment& environment, Nodes* nodes) {
    return NodesFromLeaderWorkerSet(
        [&](const char* name) {
          const auto found = environment.find(name);
          return found == environment.end() ? nullptr : found->second.c_str();
        },
        nodes);
  };
  Nodes nodes;
  EXPECT_FALSE(*read({}, &nodes));
  EXPECT_EQ(nodes.nnodes, 1);
  EXPECT_TRUE(*read({{"LWS_LEADER_ADDRESS", "w-0.w.ns"}, {"LWS_GROUP_SIZE", "4"}, {"LWS_WORKER_INDEX", "3"}}, &nodes));
  EXPECT_EQ(nodes.master_address, "w-0.w.ns");
  EXPECT_EQ(nodes.nnodes, 4);
  EXPECT_EQ(nodes.node_rank, 3);
  const auto error = [&](const Environment& environment) { return Message(read(environment, &nodes).status()); };
  EXPECT_THAT(error({{"LWS_GROUP_SIZE", "4"}, {"LWS_WORKER_INDEX", "3"}}), HasSubstr("LWS_LEADER_ADDRESS"));
  EXPECT_THAT(error({{"LWS_LEADER_ADDRESS", "a"}, {"LWS_WORKER_INDEX", "3"}}), HasSubstr("LWS_GROUP_SIZE"));
  EXPECT_THAT(error({{"LWS_LEADER_ADDRESS", "a"}, {"LWS_GROUP_SIZE", "four"}, {"LWS_WORKER_INDEX", "3"}}), HasSubstr("four"));
  EXPECT_THAT(error({{"LWS_LEADER_ADDRESS", "a"}, {"LWS_GROUP_SIZE", "4"}, {"LWS_WORKER_INDEX", "4"}}), HasSubstr("LWS_WORKER_INDEX"));
  EXPECT_EQ(nodes.node_rank, 3);
}

TEST(Options, Checked) {
  const auto error = [](auto change) {
    RendezvousOptions options;
    options.size = 2;
    change(options);
    return Message(CheckOptions(options));
  };
  EXPECT_EQ(error([](auto&) {}), "");
  EXPECT_THAT(error([](auto& o) { o.size = 65; }), HasSubstr("world size 65"));
  EXPECT_THAT(error([](auto& o) { o.rank = 2; }), HasSubstr("rank 2"));
  EXPECT_THAT(error([](auto& o) { o.rank = 1; }), HasSubstr("master port 0"));
  EXPECT_THAT(error([](auto& o) { o.secret = "short"; }), HasSubstr("16 bytes"));
  EXPECT_THAT(error([](auto& o) { o.secret = "short"; }), Not(HasSubstr("short'")));
}

TEST(Options, Secret) {
  const std::filesystem::path file = std::filesystem::temp_directory_path() / ("phalanx_tp_secret_" + std::to_string(getpid()));
  const auto write = [&](const std::string& text) { std::ofstream(file) << text; };
  write("0123456789abcdef\n");
  EXPECT_EQ(*ReadSecret(file.string(), "PHALANX_TP_TEST"), "0123456789abcdef");
  write("short\n");
  const absl::Status status = ReadSecret(file.string(), "PHALANX_TP_TEST").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), Not(HasSubstr("short\n")));
  write("");
  EXPECT_FALSE(ReadSecret(file.string(), "PHALANX_TP_TEST").ok());
  std::filesystem::remove(file);
  EXPECT_EQ(ReadSecret(file.string(), "PHALANX_TP_TEST").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(*ReadSecret("", "PHALANX_TP_TEST"), "");
  setenv("PHALANX_TP_TEST", "fedcba9876543210", 1);
  EXPECT_EQ(*ReadSecret("", "PHALANX_TP_TEST"), "fedcba9876543210");
  unsetenv("PHALANX_TP_TEST");
}

TEST(Options, Addresses) {
  EXPECT_TRUE(Resolve("127.0.0.1", 5)->IsLoopback());
  EXPECT_TRUE(Resolve("::1", 5)->IsLoopback());
  EXPECT_EQ(Resolve("::1", 5)->Text(), "[::1]:5");
  EXPECT_FALSE(Resolve("10.1.2.3", 5)->IsLoopback());
  EXPECT_TRUE(Resolve("0.0.0.0", 5)->IsAny());
  EXPECT_EQ(InterfaceEndpoint("lo", 7)->Text(), "127.0.0.1:7");
  EXPECT_EQ(InterfaceEndpoint("127.0.0.2", 7)->Text(), "127.0.0.2:7");
  EXPECT_EQ(InterfaceEndpoint("nosuch0", 7).status().code(), absl::StatusCode::kNotFound);
}

float FromBf16(uint16_t x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }

TEST(Reduce, OrderAndRounding) {
  // (1e8 + 1) + -1e8 is 0 in f32, 1e8 + (1 - 1e8) is 1: the order shows.
  const float a[] = {1e8f, 1.0f, -0.0f, NAN};
  const float b[] = {1.0f, -1e8f, -0.0f, 1.0f};
  float c[] = {-1e8f, 1e8f, -0.0f, 1.0f};
  const void* parts[] = {a, b, c};
  SumInRankOrder(kernels::kF32, parts, c, 4);
  EXPECT_EQ(c[0], 0.0f);
  EXPECT_EQ(c[1], 0.0f);
  EXPECT_TRUE(std::signbit(c[2]));
  EXPECT_TRUE(std::isnan(c[3]));
}

TEST(Reduce, Bf16RoundsOnceToEven) {
  // 1 + 2^-8 lies between 1 and 1 + 2^-7: to even; a further 2^-9 takes it up. Rounding after each sum would lose both.
  const uint16_t one = 0x3f80, e8 = 0x3b80, e9 = 0x3b00, nan = 0x7f81, infinite = 0x7f80;
  const uint16_t x[] = {one, one, nan, infinite};
  const uint16_t y[] = {e8, e8, one, one};
  uint16_t z[] = {0, e9, one, one};
  const void* parts[] = {x, y, z};
  SumInRankOrder(kernels::kBF16, parts, z, 4);
  EXPECT_EQ(z[0], one);
  EXPECT_EQ(z[1], 0x3f81);
  EXPECT_TRUE(std::isnan(FromBf16(z[2])));
  EXPECT_EQ(z[3], infinite);
}

TEST(Group, Solo) {
  float x[8] = {1, 2, 3};
  const std::unique_ptr<Group> group = MakeSoloGroup();
  EXPECT_EQ(group->size(), 1);
  const kernels::Tensor tensor = kernels::Dense(x, kernels::kF32, 2, 2, 4);
  EXPECT_TRUE(group->AllReduce(tensor, nullptr).ok());
  EXPECT_EQ(x[2], 3);
  EXPECT_TRUE(group->AllGather(tensor, tensor, nullptr).ok());
}

TEST(Group, ShapesAreChecked) {
  float x[64] = {};
  kernels::Tensor strided = kernels::Dense(x, kernels::kF32, 2, 2, 4);
  strided.stride[0] = 8;
  EXPECT_FALSE(CheckReduce(strided).ok());
  EXPECT_FALSE(CheckReduce(kernels::Dense(x, kernels::kI32, 1, 4)).ok());
  EXPECT_TRUE(CheckReduce(kernels::Dense(x, kernels::kF32, 1, 0)).ok());
  const kernels::Tensor out = kernels::Dense(x, kernels::kF32, 2, 2, 8);
  EXPECT_TRUE(CheckGather(kernels::Dense(x + 8, kernels::kF32, 1, 8), out, 1, 2).ok());
  EXPECT_TRUE(CheckGather(kernels::Dense(x + 32, kernels::kF32, 1, 8), out, 1, 2).ok());
  EXPECT_FALSE(CheckGather(kernels::Dense(x + 4, kernels::kF32, 1, 8), out, 1, 2).ok());
  EXPECT_FALSE(CheckGather(kernels::Dense(x, kernels::kF32, 1, 8), out, 1, 2).ok());
  EXPECT_FALSE(CheckGather(kernels::Dense(x + 8, kernels::kF32, 1, 7), out, 1, 2).ok());
  EXPECT_FALSE(CheckGather(kernels::Dense(x + 8, kernels::kI32, 1, 8), out, 1, 2).ok());
  EXPECT_FALSE(CheckGather(kernels::Dense(x + 32, kernels::kF32, 1, 16), out, 0, 1).ok());
}

}  // namespace
}  // namespace phalanx::worker::tp
