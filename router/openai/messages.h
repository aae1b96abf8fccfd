// router/openai/messages.h: the checked message list of a chat, as the template will see it.
// Refuses to know: templates. Thread: pure functions. Neighbours: chat_parse.cc and tokenize.cc.
#pragma once

#include <string>

#include "router/openai/fields.h"

namespace phalanx::router::openai {

// Checks `messages` and writes the list for the template: role, content as one string (text parts joined by newlines, absent = ""),
// name, tool_call_id, tool_calls, reasoning_content (given under either of its names). Other keys are dropped, as vLLM does.
// `last_assistant`, if given, gets the content of a last message with role assistant.
void ReadMessages(FieldReader* fields, std::string* messages_json, std::string* last_assistant);

// chat_template_kwargs and reasoning_effort as one JSON object, "" if neither is given; refuses chat_template and documents.
void ReadTemplateFields(FieldReader* fields, std::string* kwargs_json);

}  // namespace phalanx::router::openai
