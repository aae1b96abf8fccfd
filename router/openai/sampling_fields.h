// router/openai/sampling_fields.h: the fields that chat and text completions share, read once.
// Refuses to know: messages, prompts, replies. Thread: pure functions. Neighbours: chat_parse.cc and completions_parse.cc.
#pragma once

#include "router/openai/fields.h"
#include "router/openai/form.h"

namespace phalanx::router::openai {

// Sampling, streaming and vLLM's extra fields into `out`; refuses what would change the reply and is not served.
// Not read here: max_tokens' chat name, logprobs (its type differs between the endpoints).
void ReadSharedFields(FieldReader* fields, ParsedRequest* out);

}  // namespace phalanx::router::openai
