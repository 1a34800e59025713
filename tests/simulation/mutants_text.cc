// Planted bugs of the text stage, and of the ends that it finds.
#include <map>
#include <memory>
#include <utility>
#include <variant>

#include "tests/simulation/mutant_makers.h"
#include "tests/simulation/tiny_model.h"

namespace moebius::simulation {
namespace {

// What was drawn behind the stop string while it was not noticed is not
// dropped: the last output has it, as tokens or as text.
class BeyondStop final : public Mutant {
 public:
  explicit BeyondStop(bool as_text) : as_text_(as_text) {}

  void OnText(TextBatch& batch) override {
    for (const TextItem& item : batch) {
      const auto* drawn = std::get_if<TokenDrawn>(&item);
      if (drawn == nullptr) continue;
      drawn_[drawn->request][drawn->token.position] = drawn->token;
    }
  }
  void OnOutputs(std::vector<Output>& outputs) override {
    for (Output& output : outputs) {
      if (output.finish != FinishReason::kStop || output.tokens.empty()) {
        continue;
      }
      const auto& drawn = drawn_[output.request];
      auto next = drawn.upper_bound(output.tokens.back().position);
      for (; next != drawn.end(); ++next) {
        if (as_text_) {
          output.text += ByteTokenizer().TokenBytes(next->second.token);
        } else {
          output.tokens.push_back(next->second);
        }
      }
    }
  }

 private:
  const bool as_text_;
  std::map<RequestId, std::map<uint32_t, SampledToken>> drawn_;
};

class EndsEarly final : public Mutant {
 public:
  bool ShowsEndsEarly() override { return true; }
};

class EndsUnheard final : public Mutant {
 public:
  void OnTextEnds(std::vector<TextEnd>& ends) override { ends.clear(); }
};

class EndsKeptBack final : public Mutant {
 public:
  void OnText(TextBatch& batch) override {
    for (TextItem& item : batch) {
      auto* const ended = std::get_if<GenerationEnded>(&item);
      if (ended != nullptr && !ended->finish.has_value()) ended->silent = true;
    }
  }
};

// What a coordinator takes up from its predecessor has no text.
class RecoveredUnsaid final : public Mutant {
 public:
  void OnText(TextBatch& batch) override {
    std::erase_if(batch, [](const TextItem& item) {
      const auto* const begun = std::get_if<GenerationBegun>(&item);
      return begun != nullptr && !begun->accepted;
    });
  }
};

template <typename T, typename... Args>
Make Planted(Args... args) {
  return [=](uint64_t) { return std::make_unique<T>(args...); };
}

}  // namespace

void AddText(std::vector<MutantInfo>& all) {
  all.push_back(
      {"tokens-beyond-stop",
       "tokens drawn behind a stop string that was noticed late count",
       Planted<BeyondStop>(false)});
  all.push_back({"text-beyond-stop",
                 "a stop string that was noticed late does not cut the text",
                 Planted<BeyondStop>(true)});
  all.push_back({"end-before-journal",
                 "a stop string's end is shown before the journal has it",
                 Planted<EndsEarly>()});
  all.push_back({"stop-unheard",
                 "the engine does not hear what a stop string has ended",
                 Planted<EndsUnheard>()});
  all.push_back({"end-kept-back",
                 "the end that was held back is dropped with its generation",
                 Planted<EndsKeptBack>()});
  all.push_back({"recovered-unsaid",
                 "what an earlier coordinator had accepted has no text",
                 Planted<RecoveredUnsaid>()});
}

}  // namespace moebius::simulation
