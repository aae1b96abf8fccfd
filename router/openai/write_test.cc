// Replies byte for byte: plain and streamed, chat and completions, with every switch that changes what is written.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "router/openai/reply_writer.h"
#include "services/json.h"

namespace phalanx::router::openai {
namespace {

using core::Finish;
using core::Kind;
using core::ReplyPart;
using core::Usage;

const ReplyHead kChatHead = {.id = "chatcmpl-r1", .created = 1700000000, .model = "org/m"};
const ReplyHead kTextHead = {.id = "cmpl-r1", .created = 1700000000, .model = "org/m"};
const Usage kUsage = {.prompt_tokens = 5, .completion_tokens = 3, .reasoning_tokens = 0, .cached_tokens = 4};
const char kUsageJson[] = R"({"prompt_tokens":5,"total_tokens":8,"completion_tokens":3})";

// One event; the stream's fixed fields, then `rest`.
std::string ChatEvent(const std::string& rest) {
  return R"(data: {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":1700000000,"model":"org/m",)" + rest + "}\n\n";
}
std::string TextEvent(const std::string& rest) {
  return R"(data: {"id":"cmpl-r1","object":"text_completion","created":1700000000,"model":"org/m",)" + rest + "}\n\n";
}
const char kDoneText[] = "data: [DONE]\n\n";

struct Written {
  std::vector<std::string> steps;  // what each Write appended
  std::string rest;                // what Finish appended
  FinishedReply finished;
  std::string all() const {
    std::string out;
    for (const std::string& step : steps) out += step;
    return out + rest;
  }
};

Written Write(ReplyForm form, ReplyHead head, const std::vector<std::vector<ReplyPart>>& steps, const absl::Status& end = absl::OkStatus(),
              const WriteOptions& options = {}, Usage usage = kUsage) {
  const auto writer = MakeReplyWriter(form, head, options);
  EXPECT_STREQ(writer->content_type(), form.stream ? "text/event-stream" : "application/json");
  Written out;
  for (const auto& parts : steps) {
    out.steps.emplace_back();
    writer->Write(parts, usage, &out.steps.back());
  }
  out.finished = writer->Finish(end, usage, &out.rest);
  return out;
}

ReplyForm Chat(bool stream) { return {.kind = Kind::kChat, .stream = stream}; }
ReplyForm Text(bool stream) { return {.kind = Kind::kCompletion, .stream = stream}; }

core::TokenLogprob Token(int32_t id, const std::string& bytes, float logprob, int64_t offset = 0) {
  return {.id = id, .bytes = bytes, .logprob = logprob, .rank = 2, .top = {{9, "z", -0.5f}, {id, bytes, logprob}}, .text_offset = offset};
}

TEST(ChatStream, RoleThenTextThenFinishThenDone) {
  const Written out = Write(Chat(true), kChatHead, {{{.text = "Hi"}}, {{.text = ""}}, {{.text = "\n\"é\""}}, {{.text = "!", .finish = Finish::kStop}}});
  EXPECT_EQ(out.steps[0], ChatEvent(R"("choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}])") +
                              ChatEvent(R"("choices":[{"index":0,"delta":{"content":"Hi"},"logprobs":null,"finish_reason":null}])"));
  EXPECT_EQ(out.steps[1], "");  // nothing is certain yet: no event
  EXPECT_EQ(out.steps[2], ChatEvent(R"("choices":[{"index":0,"delta":{"content":"\n\"é\""},"logprobs":null,"finish_reason":null}])"));
  EXPECT_EQ(out.steps[3], ChatEvent(R"("choices":[{"index":0,"delta":{"content":"!"},"logprobs":null,"finish_reason":null}])") +
                              ChatEvent(R"("choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":null}])"));
  EXPECT_EQ(out.rest, kDoneText);
  EXPECT_EQ(out.finished.http_code, 200);
  EXPECT_STREQ(out.finished.content_type, "text/event-stream");
}

TEST(ChatStream, AllRolesComeFirstInOrder) {
  ReplyHead head = kChatHead;
  head.choices = 3;
  const Written out = Write(Chat(true), head, {{{.index = 2, .text = "c"}}, {{.index = 0, .text = "a", .finish = Finish::kLength},
                                                {.index = 1, .finish = Finish::kStop, .stop_string = "END"}, {.index = 2, .finish = Finish::kStop, .stop_token = 7}}});
  std::string expected;
  for (const char* index : {"0", "1", "2"}) {
    expected += ChatEvent(R"("choices":[{"index":)" + std::string(index) + R"(,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}])");
  }
  EXPECT_EQ(out.steps[0], expected + ChatEvent(R"("choices":[{"index":2,"delta":{"content":"c"},"logprobs":null,"finish_reason":null}])"));
  EXPECT_EQ(out.steps[1], ChatEvent(R"("choices":[{"index":0,"delta":{"content":"a"},"logprobs":null,"finish_reason":null}])") +
                              ChatEvent(R"("choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length","stop_reason":null}])") +
                              ChatEvent(R"("choices":[{"index":1,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":"END"}])") +
                              ChatEvent(R"("choices":[{"index":2,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":7}])"));
  EXPECT_EQ(out.rest, kDoneText);
}

TEST(ChatStream, UsageIsNullThenTheLastChunk) {
  ReplyForm form = Chat(true);
  form.include_usage = true;
  const std::vector<std::vector<ReplyPart>> steps = {{{.text = "Hi", .finish = Finish::kStop}}};
  const std::string expected =
      ChatEvent(R"("choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null)") +
      ChatEvent(R"("choices":[{"index":0,"delta":{"content":"Hi"},"logprobs":null,"finish_reason":null}],"usage":null)") +
      ChatEvent(R"("choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":null}],"usage":null)") +
      ChatEvent(R"("choices":[],"usage":)" + std::string(kUsageJson)) + kDoneText;
  EXPECT_EQ(Write(form, kChatHead, steps).all(), expected);
  EXPECT_EQ(Write(Chat(true), kChatHead, steps, absl::OkStatus(), {.force_include_usage = true}).all(), expected);
}

TEST(ChatStream, ContinuousUsageIsOnEveryChunk) {
  ReplyForm form = Chat(true);
  form.include_usage = form.continuous_usage = form.return_token_ids = true;
  const Written out = Write(form, kChatHead, {{{.text = "Hi", .ids = {3, 4}, .prompt_ids = {1, 2}, .finish = Finish::kStop}}});
  const std::string usage = R"(,"usage":)" + std::string(kUsageJson);
  EXPECT_EQ(out.all(),
            ChatEvent(R"("choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":[1,2])" + usage) +
                ChatEvent(R"("choices":[{"index":0,"delta":{"content":"Hi"},"logprobs":null,"finish_reason":null,"token_ids":[3,4]}])" + usage) +
                ChatEvent(R"("choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":null}])" + usage) +
                ChatEvent(R"("choices":[])" + usage) + kDoneText);
}

TEST(ChatStream, TokenIdsComeWithTheirText) {
  ReplyForm form = Chat(true);
  form.return_token_ids = true;
  const Written out = Write(form, kChatHead, {{{.ids = {3}, .prompt_ids = {1}}}});  // no text is certain yet, the id is
  EXPECT_EQ(out.steps[0], ChatEvent(R"("choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":[1])") +
                              ChatEvent(R"("choices":[{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":null,"token_ids":[3]}])"));
}

TEST(ChatStream, LogprobsOfTheChunk) {
  ReplyForm form = Chat(true);
  form.logprobs = true;
  const ReplyPart part = {.text = "é", .logprobs = {Token(3, "\xC3", -0.25f), Token(4, "\xA9", -12345.0f)}};
  std::string event = Write(form, kChatHead, {{part}}).steps[0];
  event = event.substr(event.find("data:", 1));
  EXPECT_EQ(event, ChatEvent(R"("choices":[{"index":0,"delta":{"content":"é"},"logprobs":{"content":[)"
                             R"({"token":"�","logprob":-0.25,"bytes":[195],"top_logprobs":[{"token":"z","logprob":-0.5,"bytes":[122]},{"token":"�","logprob":-0.25,"bytes":[195]}]},)"
                             R"({"token":"�","logprob":-9999.0,"bytes":[169],"top_logprobs":[{"token":"z","logprob":-0.5,"bytes":[122]},{"token":"�","logprob":-9999.0,"bytes":[169]}]})"
                             R"(],"refusal":null},"finish_reason":null}])"));
  form.tokens_as_ids = true;
  event = Write(form, kChatHead, {{part}}).steps[0];
  EXPECT_NE(event.find(R"({"token":"token_id:3","logprob":-0.25,"bytes":[195],"top_logprobs":[{"token":"token_id:9",)"), std::string::npos) << event;
}

TEST(ChatStream, ReasoningUnderTheNameTheServerUses) {
  const std::vector<std::vector<ReplyPart>> steps = {{{.reasoning = "why"}}, {{.text = "so", .reasoning = "."}}};
  const auto delta = [&](size_t step, ReasoningField field) {
    std::string out = Write(Chat(true), kChatHead, steps, absl::OkStatus(), {.reasoning_field = field}).steps[step];
    const size_t at = out.rfind("\"delta\":") + 8;
    return out.substr(at, out.find(",\"logprobs\"", at) - at);
  };
  EXPECT_EQ(delta(0, ReasoningField::kReasoningContent), R"({"reasoning_content":"why"})");
  EXPECT_EQ(delta(0, ReasoningField::kReasoning), R"({"reasoning":"why"})");
  EXPECT_EQ(delta(0, ReasoningField::kBoth), R"({"reasoning_content":"why","reasoning":"why"})");
  EXPECT_EQ(delta(1, ReasoningField::kReasoningContent), R"({"reasoning_content":".","content":"so"})");
  ReplyForm form = Chat(true);
  form.include_reasoning = false;
  const Written hidden = Write(form, kChatHead, {{{.reasoning = "why"}}});
  EXPECT_EQ(hidden.all().find("why"), std::string::npos);
}

TEST(ChatStream, EchoOfTheLastMessage) {
  ReplyForm form = Chat(true);
  form.echo_message = "so far";
  ReplyHead head = kChatHead;
  head.choices = 2;
  const std::string text = Write(form, head, {{{.index = 1, .text = "x"}}}).steps[0];
  std::string expected;
  for (const char* index : {"0", "1"}) {
    expected += ChatEvent(R"("choices":[{"index":)" + std::string(index) + R"(,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}])");
  }
  for (const char* index : {"0", "1"}) {
    expected += ChatEvent(R"("choices":[{"index":)" + std::string(index) + R"(,"delta":{"content":"so far"},"logprobs":null,"finish_reason":null}])");
  }
  EXPECT_EQ(text, expected + ChatEvent(R"("choices":[{"index":1,"delta":{"content":"x"},"logprobs":null,"finish_reason":null}])"));
}

TEST(ChatStream, FingerprintAndDetails) {
  ReplyForm form = Chat(true);
  form.include_usage = true;
  Usage usage = kUsage;
  usage.reasoning_tokens = 2;
  const Written out = Write(form, kChatHead, {}, absl::OkStatus(), {.prompt_tokens_details = true, .system_fingerprint = "phalanx-1"}, usage);
  EXPECT_NE(out.rest.find(R"("model":"org/m","system_fingerprint":"phalanx-1","choices":[],"usage":{"prompt_tokens":5,"total_tokens":8,"completion_tokens":3,)"
                          R"("prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":2}})"),
            std::string::npos)
      << out.rest;
}

TEST(Streams, AnErrorBeforeTheFirstChunkIsABody) {
  for (const ReplyForm& form : {Chat(true), Text(true), Chat(false), Text(false)}) {
    const Written out = Write(form, kChatHead, {}, absl::UnavailableError("no worker is ready"));
    EXPECT_EQ(out.all(), R"({"error":{"message":"no worker is ready","type":"server_error","param":null,"code":"unavailable"}})");
    EXPECT_EQ(out.finished.http_code, 503);
    EXPECT_STREQ(out.finished.content_type, "application/json");
  }
}

TEST(Streams, AnErrorAfterTheFirstChunkIsAnEventAndDone) {
  for (const ReplyForm& form : {Chat(true), Text(true)}) {
    const Written out = Write(form, kChatHead, {{{.text = "Hi"}}}, absl::UnavailableError("the worker went away"));
    EXPECT_EQ(out.rest, "data: {\"error\":{\"message\":\"the worker went away\",\"type\":\"server_error\",\"param\":null,\"code\":\"unavailable\"}}\n\ndata: [DONE]\n\n");
    EXPECT_STREQ(out.finished.content_type, "text/event-stream");
  }
}

TEST(Streams, APlainReplyThatFailsHalfWayIsOnlyTheError) {
  for (const ReplyForm& form : {Chat(false), Text(false)}) {
    const Written out = Write(form, kChatHead, {{{.text = "Hi"}}}, absl::InternalError("secret path"));
    EXPECT_EQ(out.all(), R"({"error":{"message":"The server had an internal error while processing the request.","type":"server_error","param":null,"code":null}})");
    EXPECT_EQ(out.finished.http_code, 500);
  }
}

TEST(ChatBody, OneChoice) {
  const Written out = Write(Chat(false), kChatHead, {{{.text = "Hel"}}, {{.text = "lo\t", .finish = Finish::kStop, .stop_string = "\n"}}});
  EXPECT_EQ(out.steps[0] + out.steps[1], "");
  EXPECT_EQ(out.rest,
            R"({"id":"chatcmpl-r1","object":"chat.completion","created":1700000000,"model":"org/m","choices":[{"index":0,"message":)"
            R"({"role":"assistant","reasoning_content":null,"content":"Hello\t","refusal":null},"logprobs":null,"finish_reason":"stop","stop_reason":"\n",)"
            R"("token_ids":null}],"service_tier":null,"system_fingerprint":null,"usage":{"prompt_tokens":5,"total_tokens":8,"completion_tokens":3},)"
            R"("prompt_logprobs":null,"prompt_token_ids":null})");
  EXPECT_EQ(out.finished.http_code, 200);
  EXPECT_STREQ(out.finished.content_type, "application/json");
}

TEST(ChatBody, ChoicesKeepTheirOwnTextReasoningAndIds) {
  ReplyForm form = Chat(false);
  form.return_token_ids = form.prompt_logprobs = true;
  ReplyHead head = kChatHead;
  head.choices = 2;
  core::TokenLogprob first = Token(1, "p", 0);
  first.has_logprob = false;
  const Written out = Write(form, head,
                            {{{.index = 1, .reasoning = "why", .ids = {8}, .prompt_ids = {1, 2}}},
                             {{.index = 0, .text = "a", .ids = {5}, .prompt_logprobs = {first, Token(2, "q", -1.5f)}, .prompt_ids = {1, 2}, .finish = Finish::kStop, .stop_token = 5},
                              {.index = 1, .ids = {9}, .finish = Finish::kLength}}},
                            absl::OkStatus(), {.reasoning_field = ReasoningField::kBoth, .system_fingerprint = "fp"});
  EXPECT_EQ(out.rest,
            R"({"id":"chatcmpl-r1","object":"chat.completion","created":1700000000,"model":"org/m","choices":[)"
            R"({"index":0,"message":{"role":"assistant","reasoning_content":null,"reasoning":null,"content":"a","refusal":null},"logprobs":null,"finish_reason":"stop","stop_reason":5,"token_ids":[5]},)"
            R"({"index":1,"message":{"role":"assistant","reasoning_content":"why","reasoning":"why","content":null,"refusal":null},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":[8,9]})"
            R"(],"service_tier":null,"system_fingerprint":"fp","usage":{"prompt_tokens":5,"total_tokens":8,"completion_tokens":3},)"
            R"("prompt_logprobs":[null,{"2":{"logprob":-1.5,"rank":2,"decoded_token":"q"},"9":{"logprob":-0.5,"rank":1,"decoded_token":"z"}}],"prompt_token_ids":[1,2]})");
}

TEST(ChatBody, LogprobsJoinOverParts) {
  ReplyForm form = Chat(false);
  form.logprobs = true;
  form.echo_message = "so ";
  const Written out = Write(form, kChatHead, {{{.text = "a", .logprobs = {Token(3, "a", -1)}}}, {{.text = "b", .logprobs = {Token(4, "b", 0)}, .finish = Finish::kStop}}});
  EXPECT_NE(out.rest.find(R"("content":"so ab","refusal":null},"logprobs":{"content":[)"
                          R"({"token":"a","logprob":-1.0,"bytes":[97],"top_logprobs":[{"token":"z","logprob":-0.5,"bytes":[122]},{"token":"a","logprob":-1.0,"bytes":[97]}]},)"
                          R"({"token":"b","logprob":0.0,"bytes":[98],"top_logprobs":[{"token":"z","logprob":-0.5,"bytes":[122]},{"token":"b","logprob":0.0,"bytes":[98]}]})"
                          R"(],"refusal":null})"),
            std::string::npos)
      << out.rest;
}

TEST(CompletionStream, FinishIsInTheLastTextChunk) {
  ReplyForm form = Text(true);
  form.include_usage = true;
  ReplyHead head = kTextHead;
  head.choices = 2;
  const Written out = Write(form, head, {{{.index = 1, .text = "b"}}, {{.index = 0, .text = "a", .finish = Finish::kLength}, {.index = 1, .text = "", .finish = Finish::kStop, .stop_token = 2}}});
  EXPECT_EQ(out.steps[0], TextEvent(R"("choices":[{"index":1,"text":"b","logprobs":null,"finish_reason":null,"stop_reason":null}],"usage":null)"));
  EXPECT_EQ(out.steps[1], TextEvent(R"("choices":[{"index":0,"text":"a","logprobs":null,"finish_reason":"length","stop_reason":null}],"usage":null)") +
                              TextEvent(R"("choices":[{"index":1,"text":"","logprobs":null,"finish_reason":"stop","stop_reason":2}],"usage":null)"));
  EXPECT_EQ(out.rest, TextEvent(R"("choices":[],"usage":)" + std::string(kUsageJson)) + kDoneText);
}

TEST(CompletionStream, EchoLogprobsAndIdsComeWithTheFirstChunk) {
  ReplyForm form = Text(true);
  form.echo = form.logprobs = form.return_token_ids = form.include_usage = form.continuous_usage = true;
  core::TokenLogprob first = Token(1, "P", 0);
  first.has_logprob = false;
  const Written out = Write(form, kTextHead,
                            {{{.text = "a", .ids = {3}, .logprobs = {Token(3, "a", -1, 2)}, .prompt_logprobs = {first, Token(2, "q", -1.5f, 1)}, .prompt_ids = {1, 2}, .echo_text = "Pq"}}});
  EXPECT_EQ(out.steps[0],
            TextEvent(R"("choices":[{"index":0,"text":"Pqa","logprobs":{"text_offset":[0,1,2],"token_logprobs":[null,-1.5,-1.0],"tokens":["P","q","a"],)"
                      R"("top_logprobs":[null,{"z":-0.5,"q":-1.5},{"z":-0.5,"a":-1.0}]},"finish_reason":null,"stop_reason":null,"prompt_token_ids":[1,2],"token_ids":[3]}],"usage":)" +
                      std::string(kUsageJson)));
}

TEST(CompletionStream, NothingIsSentBeforeThereIsNews) {
  const Written out = Write(Text(true), kTextHead, {{{.ids = {1}}}, {{.text = "x"}}});
  EXPECT_EQ(out.steps[0], "");
  EXPECT_EQ(out.steps[1], TextEvent(R"("choices":[{"index":0,"text":"x","logprobs":null,"finish_reason":null,"stop_reason":null}])"));
}

TEST(CompletionBody, PlainReply) {
  const Written out = Write(Text(false), kTextHead, {{{.text = "Hel"}}, {{.text = "lo", .finish = Finish::kLength}}});
  EXPECT_EQ(out.rest,
            R"({"id":"cmpl-r1","object":"text_completion","created":1700000000,"model":"org/m","choices":[{"index":0,"text":"Hello","logprobs":null,)"
            R"("finish_reason":"length","stop_reason":null,"token_ids":null,"prompt_logprobs":null,"prompt_token_ids":null}],"service_tier":null,)"
            R"("system_fingerprint":null,"usage":{"prompt_tokens":5,"total_tokens":8,"completion_tokens":3}})");
}

TEST(CompletionBody, TwoPromptsWithEchoLogprobsAndIds) {
  ReplyForm form = Text(false);
  form.echo = form.logprobs = form.return_token_ids = form.prompt_logprobs = true;
  ReplyHead head = kTextHead;
  head.choices = 2;
  core::TokenLogprob first = Token(1, "P", 0);
  first.has_logprob = false;
  const Written out = Write(form, head,
                            {{{.index = 0, .text = "a", .ids = {3}, .logprobs = {Token(3, "a", -1, 1)}, .prompt_logprobs = {first}, .prompt_ids = {1}, .echo_text = "P"}},
                             {{.index = 0, .finish = Finish::kStop}, {.index = 1, .prompt_logprobs = {first}, .prompt_ids = {1}, .echo_text = "P", .finish = Finish::kLength}}});
  EXPECT_EQ(out.rest,
            R"({"id":"cmpl-r1","object":"text_completion","created":1700000000,"model":"org/m","choices":[)"
            R"({"index":0,"text":"Pa","logprobs":{"text_offset":[0,1],"token_logprobs":[null,-1.0],"tokens":["P","a"],"top_logprobs":[null,{"z":-0.5,"a":-1.0}]},)"
            R"("finish_reason":"stop","stop_reason":null,"token_ids":[3],"prompt_logprobs":[null],"prompt_token_ids":[1]},)"
            R"({"index":1,"text":"P","logprobs":{"text_offset":[0],"token_logprobs":[null],"tokens":["P"],"top_logprobs":[null]},)"
            R"("finish_reason":"length","stop_reason":null,"token_ids":[],"prompt_logprobs":[null],"prompt_token_ids":[1]}],)"
            R"("service_tier":null,"system_fingerprint":null,"usage":{"prompt_tokens":5,"total_tokens":8,"completion_tokens":3}})");
}

// lm-eval looks the chosen token up in top_logprobs: it is there, once, with the very same number.
TEST(CompletionBody, TheChosenTokenIsAmongTheTops) {
  ReplyForm form = Text(false);
  form.logprobs = true;
  const core::TokenLogprob chosen = {.id = 5, .bytes = "c", .logprob = -3.3333333f, .top = {{9, "z", -0.5f}, {10, "z", -0.75f}}};
  const core::TokenLogprob alone = {.id = 5, .bytes = "c", .logprob = -1e-7f};
  const Written out = Write(form, kTextHead, {{{.text = "cc", .logprobs = {chosen, alone}, .finish = Finish::kStop}}});
  EXPECT_NE(out.rest.find(R"("token_logprobs":[-3.3333333,-1e-07],"tokens":["c","c"],"top_logprobs":[{"z":-0.5,"c":-3.3333333},{"c":-1e-07}])"), std::string::npos) << out.rest;
  form.tokens_as_ids = true;  // ids keep apart what reads the same
  EXPECT_NE(Write(form, kTextHead, {{{.text = "c", .logprobs = {chosen}}}}).rest.find(R"([{"token_id:9":-0.5,"token_id:10":-0.75,"token_id:5":-3.3333333}])"), std::string::npos);
}

// Whatever bytes a model makes, every event and body is JSON that says the same text.
TEST(Writers, AnyBytesStayJson) {
  std::string bytes;
  for (int c = 0; c < 256; ++c) bytes.push_back(static_cast<char>(c));
  for (const ReplyForm& form : {Chat(false), Text(false), Chat(true), Text(true)}) {
    const std::string all = Write(form, kChatHead, {{{.text = bytes, .finish = Finish::kStop, .stop_string = bytes}}}).all();
    size_t at = 0;
    int read = 0;
    while (form.stream && (at = all.find("data: {", at)) != std::string::npos) {
      const size_t end = all.find("\n\n", at);
      const auto json = services::ParseJson(all.substr(at + 6, end - at - 6));
      ASSERT_TRUE(json.ok()) << json.status() << all;
      at = end;
      ++read;
    }
    if (!form.stream) {
      ASSERT_TRUE(services::ParseJson(all).ok()) << all;
    } else {
      EXPECT_GE(read, 1);
    }
  }
}

TEST(Writers, ReplyIds) {
  EXPECT_EQ(NewReplyId(Kind::kChat, "abc"), "chatcmpl-abc");
  EXPECT_EQ(NewReplyId(Kind::kCompletion, "abc"), "cmpl-abc");
}

}  // namespace
}  // namespace phalanx::router::openai
