#include "tests/simulation/text_stage.h"

#include <iterator>
#include <utility>

#include "tests/simulation/tiny_model.h"

namespace moebius::simulation {

SimTextStage::SimTextStage(OutputListener listener,
                           std::function<void()> plan_work, Mutant* mutant)
    : plan_work_(std::move(plan_work)),
      mutant_(mutant),
      table_(&ByteTokenizer(), std::move(listener)) {}

void SimTextStage::Push(TextBatch& batch) {
  if (batch.empty()) return;
  if (mutant_ != nullptr) mutant_->OnText(batch);
  queue_.insert(queue_.end(), std::make_move_iterator(batch.begin()),
                std::make_move_iterator(batch.end()));
  batch.clear();
  if (!std::exchange(planned_, true)) plan_work_();
}

void SimTextStage::Work() {
  planned_ = false;
  TextBatch batch = std::exchange(queue_, {});
  const size_t before = ends_.size();
  table_.Take(batch, ends_);
  if (ends_.size() == before) return;
  if (mutant_ != nullptr && mutant_->ShowsEndsEarly()) {
    for (size_t i = before; i < ends_.size(); ++i) {
      GenerationEnded ended;
      ended.request = ends_[i].request;
      batch.emplace_back(std::move(ended));
    }
    table_.Take(batch, ends_);
  }
  wake_();
}

std::vector<TextEnd> SimTextStage::TakeEnds() {
  std::vector<TextEnd> ends = std::exchange(ends_, {});
  if (mutant_ != nullptr) mutant_->OnTextEnds(ends);
  return ends;
}

}  // namespace moebius::simulation
