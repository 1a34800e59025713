// What the engine hands on to become text, and who makes it so.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "common/base/ids.h"
#include "common/step/step_result.h"
#include "coordinator/engine/engine.h"
#include "coordinator/engine/generation_output.h"

namespace moebius {

// A generation is under way. `output` has what it has shown before.
struct GenerationBegun {
  RequestId request;
  std::unique_ptr<GenerationOutput> output;
  // Its client is to hear that it was accepted.
  bool accepted = false;
};

struct TokenDrawn {
  RequestId request;
  SampledToken token;
  std::vector<PromptLogprob> prompt_logprobs;  // with the first token
  // The context holds no more.
  bool last = false;
};

// The engine has nothing more to say of it.
struct GenerationEnded {
  RequestId request;
  // What its client hears; nothing: the end that the stage has held back, or
  // not a word if `silent`.
  std::optional<FinishReason> finish;
  bool silent = false;
  std::string stop_reason;
  absl::Status refused;
};

// Somebody wants to hear it from the beginning.
struct AttachedAgain {
  struct Generation {
    RequestId request;
    StopCriteria stop;
    std::vector<SampledToken> tokens;
    std::vector<PromptLogprob> prompt_logprobs;
    // Of its end, if that is in the journal.
    std::optional<FinishReason> finish;
    std::string stop_reason;
  };
  std::vector<Generation> generations;
  Engine::AttachCallback callback;
};

// Runs between what comes before and after it.
using TextCall = std::function<void()>;

// All of it is in the journal.
using TextItem = std::variant<GenerationBegun, TokenDrawn, GenerationEnded,
                              AttachedAgain, TextCall>;
using TextBatch = std::vector<TextItem>;

// How a generation with stop strings has ended: by one of them, or by a token.
// Its client has not heard of it yet.
struct TextEnd {
  RequestId request;
  FinishReason finish = FinishReason::kStop;
  std::string stop_reason;
};

// No step is planned while a stage has more items than this to do. With steps
// in flight it has at most kMaxStepsInFlight tokens a running request more.
inline constexpr size_t kMaxTextBacklog = size_t{1} << 15;

// TextStage
//
// Turns tokens into text beside the engine, and looks for stop strings. What it
// does is text_table.h; an implementation says when: on a thread of its own, or
// when a loop tells it to.
//
// Threading: the engine's thread calls; `wake` may run on any.
class TextStage {
 public:
  virtual ~TextStage() = default;

  // Before the first Push. `wake` runs when there are ends to be taken, and
  // when a backlog of more than kMaxTextBacklog has become smaller than that.
  // It may be called until the stage is destroyed.
  virtual void Begin(std::function<void()> wake) = 0;

  // Takes all of `batch`, to be done in this order, and leaves it empty.
  virtual void Push(TextBatch& batch) = 0;

  // How generations have ended since the last call. The engine writes it into
  // the journal and answers with GenerationEnded.
  virtual std::vector<TextEnd> TakeEnds() = 0;

  // Items that are not done.
  virtual size_t backlog() const = 0;

  // Returns once all that was pushed is done.
  virtual void Flush() = 0;
};

}  // namespace moebius
