// The text stage of a simulated coordinator: late, and in its loop's thread.
#pragma once

#include <functional>
#include <vector>

#include "coordinator/engine/text_stage.h"
#include "coordinator/engine/text_table.h"
#include "tests/simulation/mutants.h"

namespace moebius::simulation {

class SimTextStage final : public TextStage {
 public:
  // `plan_work` has Work() called some time later. `mutant`: null if there is
  // none.
  SimTextStage(OutputListener listener, std::function<void()> plan_work,
               Mutant* mutant);

  // Does all that there is by now.
  void Work();

  void Begin(std::function<void()> wake) override { wake_ = std::move(wake); }
  void Push(TextBatch& batch) override;
  std::vector<TextEnd> TakeEnds() override;
  size_t backlog() const override { return queue_.size(); }
  void Flush() override { Work(); }

 private:
  const std::function<void()> plan_work_;
  Mutant* const mutant_;
  TextTable table_;
  std::function<void()> wake_;
  TextBatch queue_;
  std::vector<TextEnd> ends_;
  bool planned_ = false;
};

}  // namespace moebius::simulation
