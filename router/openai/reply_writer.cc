#include "router/openai/reply_writer.h"

#include "router/openai/chat.h"
#include "router/openai/completions.h"

namespace phalanx::router::openai {

std::unique_ptr<ReplyWriter> MakeReplyWriter(const ReplyForm& form, const ReplyHead& head, const WriteOptions& options) {
  return form.kind == core::Kind::kChat ? MakeChatWriter(form, head, options) : MakeCompletionWriter(form, head, options);
}

std::string NewReplyId(core::Kind kind, const std::string& request_id) {
  return (kind == core::Kind::kChat ? "chatcmpl-" : "cmpl-") + request_id;
}

}  // namespace phalanx::router::openai
