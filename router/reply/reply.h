// router/reply/reply.h: one choice of a reply: token ids in, text parts out: detokenising, stop strings, reasoning, logprobs, finish.
// Refuses to know: JSON, SSE, gRPC, which worker made the ids. Thread: one sequence's owner; no locks.
// Neighbours: the relay feeds it, text decodes, stop.h and reasoning.h hold the two text machines. Its state is in the router, so it
// outlives a lost worker: feed only ids that were not fed before.
//
//   Reply reply(tokenizer, options);
//   ReplyPart part = reply.Feed({.ids = event.ids, .logprobs = logprobs});
//   if (reply.finished()) CancelWorkerIfItStillRuns();
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "router/core/reply.h"
#include "router/core/validate.h"
#include "router/core/worker.h"
#include "router/reply/reasoning.h"
#include "router/reply/stop.h"
#include "text/text.h"

namespace phalanx::router::reply {

using core::TokenScore;

// What one engine step gave to one choice.
struct StepOutput {
  std::vector<int32_t> ids;                  // new output ids; an end id is the last one
  std::vector<TokenScore> logprobs;          // one per id, or empty
  core::Finish finish = core::Finish::kNone;  // set when the worker ended the sequence
  int32_t stop_id = -1;                      // the end id that ended it, when finish is kStop
};

struct ReplyOptions {
  int32_t index = 0;                         // choice: prompt number x n + number among its n
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;       // the request's own: reported as stop_token, other end ids are not
  int32_t min_tokens = 0;                    // stop strings do not end the reply before
  bool include_stop_in_output = false;
  bool skip_special_tokens = true;
  bool logprobs = false;                     // make core::TokenLogprob of every id
  bool reasoning = false;                    // chat: split <think> ... </think> off the content, if the model has these tokens
  bool starts_in_reasoning = false;          // the rendered prompt ends inside an open <think> (PromptOpensReasoning)
  bool include_reasoning = true;             // false: reasoning text is dropped
  bool discard_output = false;               // max_tokens 0 (echo only): the worker's one token is dropped, finish is kLength
  std::string echo_text;                     // completions with echo: the prompt's text, sent with the first part
  std::vector<int32_t> prompt_ids;           // with return_token_ids: sent with the first part
};

// Fills the options that follow from the request alone: all but starts_in_reasoning, echo_text and prompt_ids.
ReplyOptions OptionsFor(const core::ValidRequest& request, int32_t index);

// True if a rendered prompt ends inside reasoning: its last <think> has no </think> after it and only white space follows.
bool PromptOpensReasoning(std::string_view rendered);

class Reply {
 public:
  Reply(std::shared_ptr<const text::Tokenizer> tokenizer, ReplyOptions options);

  // Log-probabilities of the prompt: `ids` is the whole prompt, `scores` one per position after the first. Sent with the next part, so
  // call it once, before the first Feed.
  void SetPromptScores(const std::vector<int32_t>& ids, const std::vector<TokenScore>& scores);

  // Takes one step's output. The part has finish set exactly once, by a stop string or by the worker's own end; after that Feed may
  // still be called (the worker ran ahead) and gives empty parts. Cost: O(bytes of the new ids).
  core::ReplyPart Feed(StepOutput step);

  bool finished() const { return finished_; }
  int32_t completion_tokens() const { return completion_tokens_; }  // ids fed until the end, the end id included
  int32_t reasoning_tokens() const { return reasoning_tokens_; }
  const ReplyOptions& options() const { return options_; }

 private:
  void FeedId(const StepOutput& step, size_t at, core::ReplyPart* part);
  std::string TextOf(int32_t id);
  // Through the stop machine; a match ends the reply.
  void Push(std::string_view text, core::ReplyPart* part);
  // Text that is certain, through the reasoning machine into `part`.
  void Emit(std::string_view text, core::ReplyPart* part);
  void End(core::Finish finish, core::ReplyPart* part);
  core::TokenLogprob Score(const TokenScore& score, int64_t* offset) const;

  std::shared_ptr<const text::Tokenizer> tokenizer_;
  ReplyOptions options_;
  text::Detokenizer detokenizer_;
  StopMachine stop_;
  ReasoningMachine reasoning_;
  int32_t open_id_ = -1;                     // <think> and </think>, when they are special tokens that detokenising would skip
  int32_t close_id_ = -1;
  std::vector<core::TokenLogprob> prompt_scores_;
  int64_t score_offset_ = 0;                 // characters before the next scored token
  int32_t completion_tokens_ = 0;
  int32_t reasoning_tokens_ = 0;
  bool finished_ = false;
  bool first_ = true;
};

}  // namespace phalanx::router::reply
