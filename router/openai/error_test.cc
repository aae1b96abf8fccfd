// Every status as an OpenAI error: code, type, what the client may see of the message.
#include "router/openai/error.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "absl/strings/cord.h"
#include "router/core/validate.h"
#include "router/openai/models.h"
#include "services/json.h"

namespace phalanx::router::openai {
namespace {

struct Row {
  absl::StatusCode code;
  int http;
  const char* type;
  const char* json_code;
  bool retry = true;
};

TEST(Error, StatusToShape) {
  using C = absl::StatusCode;
  constexpr char kRequest[] = "invalid_request_error";
  constexpr char kServer[] = "server_error";
  for (const Row& row : {Row{C::kInvalidArgument, 400, kRequest, "null"}, {C::kOutOfRange, 400, kRequest, "null"}, {C::kFailedPrecondition,
      400, kRequest, "null"},
                         {C::kAlreadyExists, 400, kRequest, "null"}, {C::kAborted, 400, kRequest, "null"}, {C::kUnauthenticated, 401,
                             kRequest, "\"invalid_api_key\""},
                         {C::kPermissionDenied, 403, kRequest, "null"}, {C::kNotFound, 404, kRequest, "null"},
                         {C::kResourceExhausted, 429, "rate_limit_error", "\"rate_limit_exceeded\""}, {C::kCancelled, 499, kRequest,
                             "null"},
                         {C::kUnimplemented, 501, kServer, "\"not_implemented\"", false}, {C::kUnavailable, 503, kServer,
                             "\"unavailable\""},
                         {C::kDeadlineExceeded, 504, kServer, "\"timeout\""}}) {
    const ErrorReply reply = ToErrorReply(absl::Status(row.code, "what happened"));
    EXPECT_EQ(reply.head.http_code, row.http);
    EXPECT_EQ(reply.head.should_retry, row.retry) << row.http;
    EXPECT_EQ(reply.head.retry_after_s, 0);
    EXPECT_STREQ(reply.head.content_type, "application/json");
    EXPECT_EQ(reply.body, R"({"error":{"message":"what happened","type":")" + std::string(row.type) + R"(","param":null,"code":)" +
        row.json_code + "}}");
  }
}

TEST(Error, OurOwnFailuresSayNothing) {
  for (const absl::StatusCode code : {absl::StatusCode::kInternal, absl::StatusCode::kUnknown, absl::StatusCode::kDataLoss}) {
    const ErrorReply reply = ToErrorReply(absl::Status(code, "/etc/secret at 10.0.0.1"));
    EXPECT_EQ(reply.head.http_code, 500);
    EXPECT_EQ(reply.body,
        R"({"error":{"message":"The server had an internal error while processing the request.","type":"server_error","param":null,"code":null}})");
  }
}

TEST(Error, FieldCodeAndRetryAfter) {
  absl::Status status = core::FieldError("n", "n must be from 1 to 128, got 0.");
  EXPECT_EQ(ToErrorReply(status).body,
      R"({"error":{"message":"n must be from 1 to 128, got 0.","type":"invalid_request_error","param":"n","code":null}})");
  status = core::WithRetryAfter(core::WithErrorCode(absl::ResourceExhaustedError("full"), "queue_full"), 5);
  EXPECT_EQ(ToErrorReply(status).body, R"({"error":{"message":"full","type":"rate_limit_error","param":null,"code":"queue_full"}})");
  EXPECT_EQ(ToErrorReply(status).head.retry_after_s, 5);
  EXPECT_EQ(ToErrorReply(core::WithRetryAfter(absl::UnavailableError("x"), 100000)).head.retry_after_s, 60);
  core::Limits limits;
  limits.served_names = {"m"};
  EXPECT_EQ(ToErrorReply(core::ServedName("gpt", limits).status()).body,
            R"({"error":{"message":"The model `gpt` does not exist.","type":"invalid_request_error","param":"model","code":"model_not_found"}})");
}

TEST(Error, LongAndHostileMessagesAreCut) {
  std::string message;
  for (int i = 0; i < 1000; ++i) message += "日";  // 3,000 bytes; 1,000 is inside a character
  const auto json = services::ParseJson(ToErrorReply(absl::InvalidArgumentError(message)).body);
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ((*json)["error"]["message"].get<std::string>(), message.substr(0, 999));
  const auto hostile = services::ParseJson(ToErrorReply(core::FieldError("a\"\n\xff", "b\"\x01\xfe")).body);
  ASSERT_TRUE(hostile.ok()) << hostile.status();
  EXPECT_EQ((*hostile)["error"]["param"].get<std::string>(), "a\"\n\uFFFD");
  EXPECT_EQ((*hostile)["error"]["message"].get<std::string>(), "b\"\x01\uFFFD");
}

// The gateway writes the same failures without the router; the one file holds both to the same bytes.
TEST(Error, EqualsTheGatewaysGolden) {
  const char* root = getenv("PHALANX_SOURCE_DIR");
  std::ifstream in(std::string(root == nullptr ? "." : root) + "/tests/fixtures/refusals.json");
  const auto golden = services::ParseJson(std::string(std::istreambuf_iterator<char>(in), {}));
  ASSERT_TRUE(golden.ok()) << golden.status();
  const services::Json& rows = (*golden)["statuses"];
  ASSERT_GE(rows.size(), 16u);
  for (const services::Json& row : rows) {
    const auto text = [&](const char* key) { return row[key].is_string() ? row[key].get<std::string>() : std::string(); };
    absl::Status status(static_cast<absl::StatusCode>(row["number"].get<int>()), text("message"));
    if (!text("param").empty()) status.SetPayload("phalanx/field", absl::Cord(text("param")));
    if (!text("error_code").empty()) status = core::WithErrorCode(status, text("error_code"));
    if (row["retry_after"].get<int>() > 0) status = core::WithRetryAfter(status, row["retry_after"].get<int>());
    const ErrorReply reply = ToErrorReply(status);
    EXPECT_EQ(reply.body, text("body"));
    EXPECT_EQ(reply.head.http_code, row["http"].get<int>()) << text("status");
    EXPECT_EQ(reply.head.should_retry, row["should_retry"].get<bool>()) << text("status");
    EXPECT_EQ(reply.head.retry_after_s, row["retry_after_sent"].get<int>()) << text("status");
  }
}

TEST(Models, ListCardAndVersion) {
  const std::vector<ModelCard> models = {{.id = "org/m", .root = "/models/m", .created = 7, .max_model_len = 4096}, {.id = "alias",
      .root = "/models/m", .created = 7}};
  const auto card = [](const std::string& id, const std::string& length) {
    return R"({"id":")" + id + R"(","object":"model","created":7,"owned_by":"phalanx","root":"/models/m","parent":null,"max_model_len":)" +
        length +
           R"(,"permission":[{"id":"modelperm-0","object":"model_permission","created":7,"allow_create_engine":false,"allow_sampling":true,"allow_logprobs":true,)"
           R"("allow_search_indices":false,"allow_view":true,"allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false}]})";
  };
  EXPECT_EQ(WriteModelList(models), R"({"object":"list","data":[)" + card("org/m", "4096") + "," + card("alias", "null") + "]}");
  EXPECT_EQ(*WriteModel(models, "org/m"), card("org/m", "4096"));
  for (const char* id : {"org", "", "org/m/x"}) {
    const absl::Status status = WriteModel(models, id).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << id;
    EXPECT_EQ(core::ErrorCodeOf(status), "model_not_found") << id;
  }
  EXPECT_EQ(WriteVersion("0.1.0"), R"({"version":"0.1.0"})");
}

}  // namespace
}  // namespace phalanx::router::openai
