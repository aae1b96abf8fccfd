#include "router/rpc/openai_service.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/core/validate.h"
#include "router/openai/chat.h"
#include "router/openai/completions.h"
#include "router/openai/error.h"
#include "router/openai/models.h"
#include "router/openai/tokenize.h"
#include "router/rpc/request_id.h"
#include "services/clock.h"

namespace phalanx::router::rpc {
namespace {

constexpr char kJson[] = "application/json";
constexpr char kPrometheusText[] = "text/plain; version=0.0.4; charset=utf-8";
constexpr size_t kScrapesMax = 8;

// What the gateway needs for a reply of which nothing has been sent before its end. It reads this from initial metadata, because
// trailers of a stream never reach HTTP.
void SetHeaders(const openai::FinishedReply& end, grpc::CallbackServerContext* context) {
  context->AddInitialMetadata("x-http-code", absl::StrCat(end.http_code));
  if (end.retry_after_s > 0) context->AddInitialMetadata("retry-after", absl::StrCat(end.retry_after_s));
  if (!end.should_retry) context->AddInitialMetadata("x-should-retry", "false");
}

// A reply of one body. Deletes itself.
class OneBody final : public OpenAiService::Writer {
 public:
  explicit OneBody(grpc::CallbackServerContext* context) : context_(context) {}

  // Exactly one of these, once.
  void Send(std::string body, const char* content_type) {
    message_.set_content_type(content_type);
    message_.set_data(std::move(body));
    StartWriteAndFinish(&message_, {}, grpc::Status::OK);
  }
  void Send(absl::StatusOr<std::string> body) {
    if (body.ok()) return Send(*std::move(body), kJson);
    openai::ErrorReply error = openai::ToErrorReply(body.status());
    SetHeaders(error.head, context_);
    Send(std::move(error.body), error.head.content_type);
  }
  bool cancelled() const { return context_->IsCancelled(); }
  void OnDone() override { delete this; }

 private:
  grpc::CallbackServerContext* const context_;
  OpenAiService::Body message_;
};

OpenAiService::Writer* ReplyWith(grpc::CallbackServerContext* context, absl::StatusOr<std::string> body) {
  auto* reply = new OneBody(context);
  reply->Send(std::move(body));
  return reply;
}

// `make` is called on the executor, and not at all if the client has left meanwhile.
template <typename Make>
OpenAiService::Writer* ReplyLater(grpc::CallbackServerContext* context, Executor& executor, const char* content_type, Make make) {
  auto* reply = new OneBody(context);
  const bool queued = executor.TryRun([reply, content_type, make] {
    absl::StatusOr<std::string> body = reply->cancelled() ? absl::CancelledError("the client left") : absl::StatusOr<std::string>(make());
    if (!body.ok()) return reply->Send(std::move(body));
    reply->Send(*std::move(body), content_type);
  });
  if (!queued) reply->Send(Busy());
  return reply;
}

}  // namespace

class OpenAiService::Stream final : public ReplyStream<Body> {
 public:
  using ReplyStream::ReplyStream;

  void SetWriter(std::unique_ptr<openai::ReplyWriter> writer) {
    writer_ = std::move(writer);
    content_type_ = writer_->content_type();
  }
  using ReplyStream::context;

 protected:
  void Add(std::vector<core::ReplyPart>& parts, const core::Usage& so_far) override { writer_->Write(parts, so_far, &waiting_); }

  grpc::Status End(const absl::Status& status, const core::Usage& usage) override {
    openai::FinishedReply end;
    if (writer_ != nullptr) {
      end = writer_->Finish(status, usage, &waiting_);
    } else {  // refused before it was known how to write a reply
      openai::ErrorReply error = openai::ToErrorReply(status);
      end = error.head;
      waiting_ = std::move(error.body);
    }
    if (!sent_) {
      content_type_ = end.content_type;
      SetHeaders(end, context());
    }
    return grpc::Status::OK;
  }

  // The two buffers change places, so a long stream allocates nothing for its messages.
  bool Take(bool, Body* out, int*) override {
    if (waiting_.empty()) return false;
    if (!sent_) out->set_content_type(content_type_);
    sent_ = true;
    out->mutable_data()->swap(waiting_);
    waiting_.clear();
    return true;
  }

  size_t waiting_bytes() const override { return waiting_.size(); }
  void Drop() override { waiting_.clear(); }

 private:
  std::unique_ptr<openai::ReplyWriter> writer_;
  const char* content_type_ = kJson;
  bool sent_ = false;
  std::string waiting_;
};

OpenAiService::OpenAiService(OpenAiOptions options, core::Handler* handler)
    : options_(std::move(options)),
      handler_(handler),
      watch_(options_.stall_check),
      work_(options_.work_threads, options_.work_queue_max),
      scrape_(1, kScrapesMax) {}

OpenAiService::Writer* OpenAiService::ChatCompletions(grpc::CallbackServerContext* context, const Body* request) {
  return Generate(context, request, &openai::ParseChat);
}

OpenAiService::Writer* OpenAiService::Completions(grpc::CallbackServerContext* context, const Body* request) {
  return Generate(context, request, &openai::ParseCompletion);
}

OpenAiService::Writer* OpenAiService::Generate(grpc::CallbackServerContext* context, const Body* request, Parse parse) {
  auto stream = std::make_shared<Stream>(context, &watch_, options_.stream);
  stream->Open();
  if (request->data().size() <= options_.inline_bytes_max) {
    Begin(*stream, *request, parse);
  } else if (!work_.TryRun([this, stream, request, parse] { Begin(*stream, *request, parse); })) {
    stream->Refuse(Busy());
  }
  return stream.get();
}

void OpenAiService::Begin(Stream& stream, const Body& request, Parse parse) {
  if (stream.gone()) return stream.Refuse(absl::CancelledError("the client left"));
  absl::StatusOr<openai::ParsedRequest> parsed = parse(request.data());
  if (!parsed.ok()) return stream.Refuse(parsed.status());
  core::Draft& draft = parsed->draft;
  draft.request_id = RequestId(*stream.context(), draft.request_id);
  openai::ReplyHead head;
  head.id = openai::NewReplyId(draft.kind, draft.request_id);
  head.created = services::UnixSeconds();
  absl::StatusOr<core::ValidRequest> valid = core::Validate(std::move(draft), handler_->limits());
  if (!valid.ok()) return stream.Refuse(valid.status());
  const auto prompts = static_cast<int32_t>(valid->draft.kind == core::Kind::kChat ? 1 : valid->draft.prompts.size());
  head.model = valid->served_name;
  head.choices = prompts * valid->sampling.n;
  stream.SetWriter(openai::MakeReplyWriter(parsed->form, head, options_.write));
  stream.Run(*handler_, *std::move(valid));
}

absl::StatusOr<std::string> OpenAiService::TokenizeBody(const std::string& body) {
  PHX_ASSIGN_OR_RETURN(const openai::TokenizeForm form, openai::ParseTokenize(body));
  PHX_RETURN_IF_ERROR(core::ServedName(form.draft.model, handler_->limits()).status());
  PHX_ASSIGN_OR_RETURN(const core::TokenizeResult result, handler_->Tokenize(form.draft));
  return openai::WriteTokenize(result, form.return_token_strs);
}

absl::StatusOr<std::string> OpenAiService::DetokenizeBody(const std::string& body) {
  PHX_ASSIGN_OR_RETURN(const openai::DetokenizeForm form, openai::ParseDetokenize(body));
  const core::Limits limits = handler_->limits();
  PHX_RETURN_IF_ERROR(core::ServedName(form.model, limits).status());
  PHX_RETURN_IF_ERROR(core::CheckTokenIds("tokens", form.tokens, limits));
  PHX_ASSIGN_OR_RETURN(const std::string text, handler_->Detokenize(form.tokens));
  return openai::WriteDetokenize(text);
}

OpenAiService::Writer* OpenAiService::Tokenize(grpc::CallbackServerContext* context, const Body* request) {
  return ReplyLater(context, work_, kJson, [this, request] { return TokenizeBody(request->data()); });
}

OpenAiService::Writer* OpenAiService::Detokenize(grpc::CallbackServerContext* context, const Body* request) {
  return ReplyLater(context, work_, kJson, [this, request] { return DetokenizeBody(request->data()); });
}

OpenAiService::Writer* OpenAiService::Metrics(grpc::CallbackServerContext* context, const google::protobuf::Empty*) {
  return ReplyLater(context, scrape_, kPrometheusText, [this] { return handler_->Metrics(); });
}

OpenAiService::Writer* OpenAiService::ListModels(grpc::CallbackServerContext* context, const google::protobuf::Empty*) {
  return ReplyWith(context, openai::WriteModelList(ModelCards(handler_->limits(), options_.model)));
}

OpenAiService::Writer* OpenAiService::GetModel(grpc::CallbackServerContext* context, const v1::GetModelRequest* request) {
  return ReplyWith(context, openai::WriteModel(ModelCards(handler_->limits(), options_.model), request->id()));
}

OpenAiService::Writer* OpenAiService::Version(grpc::CallbackServerContext* context, const google::protobuf::Empty*) {
  return ReplyWith(context, openai::WriteVersion(options_.version));
}

}  // namespace phalanx::router::rpc
